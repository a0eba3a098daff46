//! moim: a Socket.IO chat server that is deployed without downtime.

pub mod client;
pub mod config;
pub mod node;
pub mod web;
