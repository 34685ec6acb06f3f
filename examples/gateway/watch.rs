//! What there is to be seen of the gateway while it runs.

use std::error::Error;

use axum::{Router, http::StatusCode, routing::get};
use buttress::Registry;

/// `/ready`; with the feature `metrics` also `/metrics`, and with `serde` all figures as `/policies`.
pub(crate) fn routes(registry: &Registry) -> Result<Router, Box<dyn Error>> {
    let ready = {
        let registry = registry.clone();
        move || async move {
            match registry.snapshot().is_ready() {
                true => StatusCode::OK,
                false => StatusCode::SERVICE_UNAVAILABLE,
            }
        }
    };
    let routes = Router::new().route("/ready", get(ready));
    #[cfg(feature = "serde")]
    let routes = {
        let registry = registry.clone();
        routes.route("/policies", get(move || async move { axum::Json(registry.snapshot()) }))
    };
    #[cfg(feature = "metrics")]
    let routes = {
        // It may be installed at any time: the layers are there already.
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().install_recorder()?;
        let render = move || async move {
            buttress::observe::metrics::publish();
            recorder.render()
        };
        routes.route("/metrics", get(render))
    };
    Ok(routes)
}
