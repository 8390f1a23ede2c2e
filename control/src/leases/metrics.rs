//! What is measured of fleet-wide limits: read off when it is asked for, so that what is gone is not told of.

use prometheus::{Error, GaugeVec, IntGaugeVec, Opts, Registry, proto::MetricFamily};

use super::view::Figures;

/// All limits, as a monitor reads them.
pub(crate) fn families(figures: &[Figures]) -> Result<Vec<MetricFamily>, Error> {
    let registry = Registry::new();
    let gauge = |name: &str, help: &str| -> Result<IntGaugeVec, Error> {
        let gauge = IntGaugeVec::new(Opts::new(name, help), &["model"])?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    };
    let limit = gauge(
        "forebay_fleet_limit",
        "Most requests in flight of a model, all workers together.",
    )?;
    let allotted = gauge(
        "forebay_fleet_allotted",
        "Of a fleet-wide limit: what is lent to workers that are there.",
    )?;
    let in_flight = gauge(
        "forebay_fleet_in_flight",
        "Requests in flight under a fleet-wide limit, as workers said last.",
    )?;
    let waiting = gauge(
        "forebay_fleet_waiting",
        "Requests that wait under a fleet-wide limit, as workers said last.",
    )?;
    let held_back = gauge(
        "forebay_fleet_held_back",
        "Of a fleet-wide limit: what may be in use at workers that cannot be asked.",
    )?;
    let may_be_used = gauge(
        "forebay_fleet_may_be_used",
        "The most that may be in use of a fleet-wide limit; above the limit only while a lower one comes into force.",
    )?;
    let utilisation = GaugeVec::new(
        Opts::new(
            "forebay_fleet_utilisation_ratio",
            "Requests in flight under a fleet-wide limit, divided by it.",
        ),
        &["model"],
    )?;
    registry.register(Box::new(utilisation.clone()))?;
    for of in figures {
        let model = &[of.model.as_str()];
        for (gauge, value) in [
            (&limit, of.limit),
            (&allotted, of.allotted),
            (&in_flight, of.in_flight),
            (&waiting, of.waiting),
            (&held_back, of.held_back),
            (&may_be_used, of.used),
        ] {
            gauge.with_label_values(model).set(i64::from(value));
        }
        utilisation.with_label_values(model).set(of.utilisation());
    }
    Ok(registry.gather())
}
