//! Real servers and clients on loopback sockets: axum, tonic and hyper, over HTTP/1.1 and HTTP/2.
//!
//! Everything else is tested under a paused clock. Sockets can't be, so here the clock is the real one: a test waits
//! for what must come and is patient about when, and only the few waits that are the subject of a test have a length.
#![cfg(feature = "testing")]

mod bodies;
mod breaker;
mod bulkhead;
mod connections;
mod deadlines;
mod fallback;
mod grpc;
mod health;
mod hedge;
mod one_port;
mod places;
mod rate_limit;
mod resets;
mod retry;
mod rig;
mod table;
mod uploads;
