//! One line puts a policy on an axum router: no error handler, no mapping of errors, no boxed bodies.
//!
//! `cargo run --example axum_server` serves until Ctrl-C; with `-- --demo` it calls itself and shows the answers.

use std::time::Duration;

use axum::{Router, routing::get};
use buttress::{Deadline, DeadlineLayer, TimeoutLayer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn app() -> Result<(Router, TimeoutLayer)> {
    let timeout = TimeoutLayer::builder().name("api").after(Duration::from_millis(200)).build()?;
    let app = Router::new()
        .route("/", get(|| async { "hello\n" }))
        .route("/slow", get(|| sleep(Duration::from_secs(5))))
        .route("/left", get(|| async { format!("{:?}\n", Deadline::current().map(Deadline::remaining)) }))
        // One `Router::layer` for both: the first of the tuple is the outermost.
        .layer((DeadlineLayer::server(Duration::from_secs(2)), timeout.clone()));
    Ok((app, timeout))
}

#[tokio::main]
async fn main() -> Result<()> {
    let demo = std::env::args().any(|a| a == "--demo");
    let (app, timeout) = app()?;
    let listener = TcpListener::bind(if demo { "127.0.0.1:0" } else { "127.0.0.1:3000" }).await?;
    let address = listener.local_addr()?;
    println!("serving on http://{address}: / /slow /left");
    let server = tokio::spawn(axum::serve(listener, app).into_future());
    if !demo {
        return Ok(server.await??);
    }

    for (path, header) in
        [("/", ""), ("/slow", ""), ("/left", ""), ("/left", "grpc-timeout: 150m\r\n"), ("/", "grpc-timeout: 0m\r\n")]
    {
        println!("\n--- GET {path}  {}", header.trim_end());
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n{header}\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        println!("{}\n{}", head.lines().next().unwrap_or_default(), body.trim_end());
    }
    println!("\nseen through the handle: {:?}", timeout.handle().snapshot());
    Ok(())
}
