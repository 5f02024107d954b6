import Foundation

/// The first output of a golden vector that is further off than its tolerance.
public struct Drift: Sendable, CustomStringConvertible {
    public let sample: Int
    public let output: String
    public let difference: Double
    public let tolerance: Double

    public var description: String { "output \(output) of sample \(sample) is off by \(difference), over \(tolerance)" }
}

private struct Golden: Decodable {
    struct Encoded: Decodable {
        let dtype: String
        let shape: [Int]
        let data: Data  // base64 in the file
        var array: ArrayValue { ArrayValue(dtype: dtype, shape: shape, data: data) }
    }
    struct Sample: Decodable { let inputs: [String: Encoded], outputs: [String: Encoded] }
    let tolerance: [String: Double]
    let samples: [Sample]
}

extension {{class}} {
    /// Runs the golden vectors on this device. Gives nil when it answers as the verified runtime did.
    public func selfTest() throws -> Drift? {
        let golden = try JSONDecoder().decode(Golden.self, from: Self.resource("golden.json"))
        for (index, sample) in golden.samples.enumerated() {
            let found = try run(sample.inputs.mapValues(\.array))
            for (name, wanted) in sample.outputs.sorted(by: { $0.key < $1.key }) {
                let difference = Self.difference(found[name], wanted.array)
                let tolerance = golden.tolerance[name] ?? 0
                if !(difference <= tolerance) {
                    return Drift(sample: index, output: name, difference: difference, tolerance: tolerance)
                }
            }
        }
        return nil
    }

    private static func difference(_ found: ArrayValue?, _ wanted: ArrayValue) -> Double {
        guard let found, found.dtype == wanted.dtype, found.data.count == wanted.data.count else { return .infinity }
        guard wanted.dtype == "float32" else { return found.data == wanted.data ? 0 : .infinity }
        return zip(found.floats, wanted.floats).reduce(0) { worst, pair in
            let difference = abs(Double(pair.0) - Double(pair.1))
            return difference.isNaN ? .infinity : max(worst, difference)
        }
    }
}
