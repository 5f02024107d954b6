import CryptoKit
import Foundation
import OnnxRuntimeBindings

/// An array as the model takes and gives it: little-endian bytes, with their type and shape.
public struct ArrayValue: Sendable {
    public let dtype: String
    public let shape: [Int]
    public let data: Data

    public init(dtype: String, shape: [Int], data: Data) {
        (self.dtype, self.shape, self.data) = (dtype, shape, data)
    }

    public init(floats: [Float], shape: [Int]) {
        self.init(dtype: "float32", shape: shape, data: floats.withUnsafeBytes { Data($0) })
    }

    /// The values of a float32 array.
    public var floats: [Float] {
        data.withUnsafeBytes { raw in (0..<raw.count / 4).map { raw.loadUnaligned(fromByteOffset: 4 * $0, as: Float.self) } }
    }
}

public enum ModelError: Error, CustomStringConvertible {
    case missing(String)
    case checksum(file: String, found: String, expected: String)
    case type(String)

    public var description: String {
        switch self {
        case .missing(let what): return "\(what) is missing"
        case .checksum(let file, let found, let expected): return "\(file): sha256 \(found), expected \(expected)"
        case .type(let name): return "no tensor of type \(name)"
        }
    }
}

/// The model of this package on onnxruntime. The file is checked against its sha256 when the model is loaded.
public actor {{class}} {
    public struct Metadata: Decodable, Sendable {
        public struct File: Decodable, Sendable { public let file: String, sha256: String, bytes: Int }
        public struct Interface: Decodable, Sendable { public let name: String, dtype: String, shape: [Int] }
        public let name: String, version: String, target: String
        public let model: File
        public let inputs: [Interface], outputs: [Interface]
        public let labels: [String]
    }

    public nonisolated let metadata: Metadata
    private let environment: ORTEnv
    private let session: ORTSession

    public init() throws {
        metadata = try JSONDecoder().decode(Metadata.self, from: Self.resource("metadata.json"))
        let url = try Self.url(metadata.model.file)
        let bytes = try Data(contentsOf: url, options: .mappedIfSafe)
        let found = SHA256.hash(data: bytes).map { String(format: "%02x", $0) }.joined()
        guard found == metadata.model.sha256 else {
            throw ModelError.checksum(file: metadata.model.file, found: found, expected: metadata.model.sha256)
        }
        environment = try ORTEnv(loggingLevel: .warning)
        session = try ORTSession(env: environment, modelPath: url.path, sessionOptions: ORTSessionOptions())
    }

    public func run(_ inputs: [String: ArrayValue]) throws -> [String: ArrayValue] {
        var values: [String: ORTValue] = [:]
        for wanted in metadata.inputs {
            guard let given = inputs[wanted.name] else { throw ModelError.missing("input \(wanted.name)") }
            guard let type = Self.types[given.dtype] else { throw ModelError.type(given.dtype) }
            values[wanted.name] = try ORTValue(
                tensorData: NSMutableData(data: given.data), elementType: type, shape: given.shape.map { NSNumber(value: $0) })
        }
        let names = Set(metadata.outputs.map(\.name))
        let outputs = try session.run(withInputs: values, outputNames: names, runOptions: nil)
        return try outputs.mapValues { value in
            let info = try value.tensorTypeAndShapeInfo()
            let dtype = Self.types.first { $0.value == info.elementType }?.key ?? "unknown"
            return ArrayValue(dtype: dtype, shape: info.shape.map(\.intValue), data: try value.tensorData() as Data)
        }
    }

    static func url(_ name: String) throws -> URL {
        guard let url = Bundle.module.url(forResource: name, withExtension: nil, subdirectory: "Resources") else {
            throw ModelError.missing(name)
        }
        return url
    }

    static func resource(_ name: String) throws -> Data { try Data(contentsOf: url(name)) }

    private static let types: [String: ORTTensorElementDataType] = [
        "float32": .float, "int8": .int8, "uint8": .uInt8, "int32": .int32, "uint32": .uInt32, "int64": .int64,
        "uint64": .uInt64,
    ]
}
