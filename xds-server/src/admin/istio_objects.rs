//! The objects of Istio that this replica keeps.

use axum::{Json, extract::State};

use super::Admin;
use crate::istio::Shown;

pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<Shown>> {
    Json(admin.istio.list())
}
