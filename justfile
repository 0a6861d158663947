# Short names for what CONTRIBUTING.md lists. `just --list` shows them.

# Tests that need no server, in a minute once they are built
quick:
    cargo xtask test quick

# Every check and test, as CI runs them
test *STEPS:
    cargo xtask test {{STEPS}}

# Three zones, one of which fails
demo:
    cargo xtask demo

# Benchmarks, each with a floor of the same run
bench *ARGS:
    cargo xtask bench {{ARGS}}

# One history of the simulation
sim SEED:
    TIDEGATE_SIM_SEED={{SEED}} cargo test -p tidegate-xds-server --test sim no_two_epochs
