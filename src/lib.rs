//! moim: a Socket.IO chat server that is deployed without downtime.

pub mod adapter;
pub mod admin;
mod agreement;
pub mod chat;
pub mod client;
pub mod config;
pub mod drain;
pub mod handlers;
pub mod health;
pub mod metrics;
pub mod node;
pub mod player;
pub mod report;
pub mod seat;
pub mod web;
