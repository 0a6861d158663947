# Three images from one build: the control plane, an Envoy with the filter in it, and the sample
# service.
#
#   docker build --target control-plane -t tidegate .
#   docker build --target envoy -t tidegate-envoy .
#   docker build --target upstream -t tidegate-upstream .

FROM rust:1.95.0-bookworm AS build
WORKDIR /src
COPY . .
# The caches outlive the layer, so a changed line costs an incremental build. `xtask wasm` also
# provisions protoc.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo xtask wasm \
 && cargo build --locked --release -p tidegate -p e2e --bin tidegate --bin upstream \
 && mkdir /out \
 && cp target/filter/tidegate_filter.wasm target/release/tidegate target/release/upstream /out/

FROM debian:12.11-slim AS control-plane
COPY --from=build /out/tidegate /usr/local/bin/tidegate
# It is served at /filter.wasm.
COPY --from=build --chmod=0444 /out/tidegate_filter.wasm /usr/local/share/tidegate/tidegate_filter.wasm
USER 65532:65532
EXPOSE 18000 18001
ENTRYPOINT ["tidegate"]

FROM debian:12.11-slim AS upstream
COPY --from=build /out/upstream /usr/local/bin/upstream
USER 65532:65532
EXPOSE 9000
ENTRYPOINT ["upstream"]

# The image's own entry point changes users, which needs capabilities. Envoy needs none, so it
# starts as `envoy`.
FROM envoyproxy/envoy:v1.40.0 AS envoy
COPY --from=build --chmod=0444 /out/tidegate_filter.wasm /etc/tidegate/tidegate_filter.wasm
COPY --chmod=0444 envoy-configs/ /etc/tidegate/
USER 101:101
EXPOSE 8080
ENTRYPOINT ["envoy"]
