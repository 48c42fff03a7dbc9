//! Whence random bytes come, which is decided where aws-lc is built (ADR 24).

#[test]
fn random_bytes_are_seeded_by_the_kernel_and_not_by_timing_a_loop() {
    // It is linked only if it is used: by this, for one.
    aws_lc_rs::rand::fill(&mut [0; 16]).unwrap();
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    // Written backwards, so that this program does not hold what it looks for because it looks for it.
    let has = |backwards: &str| {
        let name: Vec<u8> = backwards.bytes().rev().collect();
        program.windows(name.len()).any(|window| window == name)
    };
    assert!(has("dees_teg_kcabllaf_ebu_mv"), "no symbols to look at");
    assert!(
        !has("yportne_daer_tnej"),
        "aws-lc was built without AWS_LC_SYS_NO_JITTER_ENTROPY=1, which .cargo/config.toml sets"
    );
}
