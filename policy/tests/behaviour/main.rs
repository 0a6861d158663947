//! Tidegate's decisions, seen from outside: tables for the rules that people read about, properties
//! for rules that must hold whatever the mesh looks like.

mod affinity;
mod any;
mod cells;
mod decisions;
mod explained;
mod facts;
mod fence;
mod moves;
mod plain_reads;
mod plans;
mod replica;
mod routing;
mod standings;
mod support;
mod terms;
