//! The round machines, pure.
//!
//! [`job`] is what an operator submits. [`coordinator`] and [`participant`] hold the two sides of a round as step
//! functions: a state and an input give the next state and effects. No clock, no disk, no network in here: the
//! shells around them persist the next state first and then carry out the effects.

pub mod coordinator;
pub mod event;
pub mod job;
pub mod participant;
