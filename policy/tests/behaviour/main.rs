//! Tidegate's decisions, seen from outside: tables for the rules that the documentation describes,
//! properties for the rules that must hold in every mesh.

mod affinity;
mod any;
mod cells;
mod decisions;
mod explained;
mod facts;
mod fence;
mod guests;
mod moves;
mod plain_reads;
mod plans;
mod replica;
mod routing;
mod standings;
mod support;
mod terms;
