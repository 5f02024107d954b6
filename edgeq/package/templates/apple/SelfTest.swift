import XCTest
@testable import {{class}}

final class SelfTest: XCTestCase {
    /// This device answers as the verified runtime did.
    func testGoldenVectors() async throws {
        let drift = try await {{class}}().selfTest()
        XCTAssertNil(drift, drift.map(String.init(describing:)) ?? "")
    }
}
