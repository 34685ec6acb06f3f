//! What the compiler says where a layer has the wrong form for its service.

#[test]
fn the_compiler_says_what_to_write() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
}
