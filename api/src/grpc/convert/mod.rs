//! Between the service's types and the messages. Messages are read strictly: an id that is no UUID is not found, a value of
//! an enum that we do not know is refused.

mod access;
mod image;
mod inspection;
mod job;
mod plan;
mod rest;
mod value;
mod verb;
mod webhook;

pub use value::{id_of, one_of, page, structure, token};
