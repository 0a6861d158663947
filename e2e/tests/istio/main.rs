//! Istio as users run it: a real istiod on a real Kubernetes API server, with plain Envoys as
//! proxies. `cargo xtask setup --istio` builds them, and `cargo xtask test istio` runs this.

mod guests;
mod kubernetes;
mod objects;
mod scene;
mod weights;

/// A host that no Kubernetes Service has.
const HOST: &str = "orders.shop.example";

const SHOP: &str = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}";

/// So many in a row are no chance, with a weight of 20 %.
const IN_A_ROW: u32 = 40;
