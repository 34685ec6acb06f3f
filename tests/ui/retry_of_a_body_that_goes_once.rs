//! A request whose body can't be recorded.
use buttress::RetryLayer;
use http_body_util::{Empty, Limited};
use tower::{Layer, Service, service_fn};

type Once = Limited<Empty<bytes::Bytes>>;

fn main() {
    let layer = RetryLayer::builder().build().unwrap();
    let service = layer.layer(service_fn(|_: http::Request<Once>| async {
        Ok::<_, std::io::Error>(http::Response::new(Empty::<bytes::Bytes>::new()))
    }));
    serve(service);
}

fn serve<S: Service<http::Request<Once>>>(_: S) {}
