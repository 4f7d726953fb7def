# List the recipes.
default:
    @just --list

# Run the echo server, with arguments passed on: just run --listen 7000
run *arguments:
    cargo run --release --locked -- {{arguments}}

# Run the tests.
test:
    cargo test --locked

# Run the long forms of the fault tests, one after another, and show the figures they reach: ten minutes or so.
soak *arguments:
    TINYLOOP_SOAK=1 cargo test --release --locked --test it -- faults:: haproxy:: --include-ignored --nocapture --test-threads 1 {{arguments}}

# Change a file's code in many small ways, and list the changes that no test notices: just mutants src/time.rs. Hours for
# all the tests; just mutants src/time.rs -- --test it -- time:: for some. Once before: cargo install cargo-mutants --locked.
mutants file *arguments:
    cargo mutants --jobserver=false --file {{file}} {{arguments}}

# Play worlds from seeds until stopped, or those of a range: just worlds 0..1000000
worlds seeds="0..18446744073709551615":
    TINYLOOP_WORLDS={{seeds}} cargo test --release --locked --test it -- worlds_without_end --ignored --nocapture

# Play one world, and show what happens in it.
world seed:
    TINYLOOP_WORLD={{seed}} cargo test --locked --test it -- a_world_is_told --ignored --nocapture

# Check the format and the lints.
lint:
    cargo fmt --check
    cargo clippy --locked --all-targets -- -D warnings

# Build the documentation.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --all-features

# Measure tinyloop beside its peers: just bench, or just bench quick for a minute's worth.
bench *arguments:
    cargo run --release --locked --manifest-path benches/Cargo.toml -- {{arguments}}

# Measure the event loop beside smol's bare executor.
bench-runtime:
    cargo run --release --locked --manifest-path benches/Cargo.toml --bin runtime

# Draw docs/recording/blocked.svg anew, from the real program: needs python3 and nc.
recording:
    cargo build --release --locked --example blocked
    python3 docs/recording/record.py target/release/examples/blocked

# Take docs/recording/monitor.png anew, a picture of the monitor's page: needs python3 and chromium.
picture:
    cargo build --release --locked --example blocked
    python3 docs/recording/page.py target/release/examples/blocked

# Write the man page and the shell completions, or see whether they are up to date: just packaging --check.
packaging *arguments:
    cargo run --locked --manifest-path packaging/Cargo.toml -- {{arguments}}

# Build target/debian/tinyloop_*.deb. Once before: cargo install cargo-deb --locked.
deb:
    cargo deb --locked

# Run everything that decides whether a change lands.
ci:
    bash .ci/run
