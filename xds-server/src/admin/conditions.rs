//! What holds now that a person may have to act on.

use axum::{Json, extract::State};

use super::Admin;
use crate::conditions::Condition;

pub(super) async fn list(State(admin): State<Admin>) -> Json<Vec<Condition>> {
    Json(admin.conditions.list())
}
