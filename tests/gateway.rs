//! A real cluster behind a gateway: etcd, expert nodes and coordinators in processes of their own, some of which are killed or told
//! to leave while clients stream. What every client gets must be what it gets when nothing happens.

#[path = "gateway/cluster.rs"]
mod cluster;
#[path = "../cluster/tests/registry/etcd_server.rs"]
mod etcd_server;
#[path = "gateway/metering.rs"]
mod metering;
#[path = "processes/run.rs"]
mod run;
#[path = "support/serving.rs"]
mod serving;
#[path = "gateway/streams.rs"]
mod streams;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cluster::Cluster;
use run::until;
use serving::Serving;
use streams::{Asked, Said, asked, stream, with_stops};

/// By when anything that is to happen has happened; only a failing test waits for it.
const LONG: Duration = Duration::from_secs(60);
/// How often what nobody tells us of is looked at.
const POLL: Duration = Duration::from_millis(5);

/// Pieces that every client has had before anything happens.
const BEGUN: usize = 4;

/// All of `asked` at once, and what `happens` when all have begun; what each said, and whether it had not ended by then.
fn at_once(cluster: &Cluster, asked: &[Asked], happens: impl FnOnce()) -> Vec<(Said, bool)> {
    let seen: Vec<AtomicUsize> = asked.iter().map(|_| AtomicUsize::new(0)).collect();
    let at = cluster.addresses();
    thread::scope(|scope| {
        let clients: Vec<_> = asked
            .iter()
            .zip(&seen)
            .map(|(asked, seen)| scope.spawn(move || (stream(at, asked, seen), Instant::now())))
            .collect();
        until("every client's stream has begun", || {
            let begun = |(seen, client): (&AtomicUsize, &thread::ScopedJoinHandle<'_, _>)| {
                seen.load(Ordering::SeqCst) >= BEGUN || client.is_finished()
            };
            seen.iter().zip(&clients).all(begun)
        });
        let now = Instant::now();
        happens();
        let said = clients.into_iter().zip(asked).map(|(client, asked)| {
            let (said, end) = client.join().unwrap_or_else(|_| panic!("a client of {} failed", asked.kind));
            (said, end > now)
        });
        said.collect()
    })
}

/// What all of `asked` get when nothing happens.
fn undisturbed(cluster: &Cluster, asked: &[Asked]) -> Vec<Said> {
    at_once(cluster, asked, || {}).into_iter().map(|(said, _)| said).collect()
}

/// That all of `asked` get the same when something `happens` while every one of them is on its way.
fn disturbed(cluster: &Cluster, asked: &[Asked], quiet: &[Said], happens: impl FnOnce()) {
    let outcomes = at_once(cluster, asked, happens);
    for ((asked, (said, was_running)), quiet) in asked.iter().zip(outcomes).zip(quiet) {
        assert!(was_running, "{} ended before anything happened: ask for more", asked.kind);
        assert_eq!(said, *quiet, "{}: {asked:?}", asked.kind);
    }
}

/// The clients' requests, and what they get when nothing happens.
fn quiet(cluster: &Cluster) -> (Vec<Asked>, Vec<Said>) {
    let mut asked = asked();
    let mut said = undisturbed(cluster, &asked);
    let stopped = with_stops(&asked.iter().cloned().zip(&said).collect::<Vec<_>>());
    said.extend(undisturbed(cluster, &stopped));
    asked.extend(stopped);
    assert_eq!(asked.len(), 18);
    (asked, said)
}

#[test]
fn clients_notice_nothing_of_a_coordinator_that_is_killed_or_leaves_or_comes_back() {
    let mut cluster = Cluster::start(2);
    let (asked, quiet) = quiet(&cluster);

    // One is killed.
    let victim = cluster.take_coordinator();
    disturbed(&cluster, &asked, &quiet, || {
        assert_ne!(victim.engine()["running"], 0, "it has some of them");
        victim.signal("KILL");
    });
    assert_eq!(victim.outcome().code, None, "killed");
    cluster.until_idle();

    // Nobody is left for a while: the last one is killed, and then started again under its name.
    let last = cluster.take_coordinator();
    let mut again = None;
    disturbed(&cluster, &asked, &quiet, || {
        last.signal("KILL");
        until("the gateway has noticed", || cluster.gateway().get("/readyz").status == 503);
        again = Some(cluster.coordinator(0));
    });
    cluster.keep(again.expect("it was started"));

    // One is told to leave, with another there: it finishes what it has.
    let another = cluster.coordinator(1);
    cluster.keep(another);
    cluster.until_ready(2);
    let leaving = cluster.take_coordinator();
    disturbed(&cluster, &asked, &quiet, || leaving.signal("TERM"));
    assert_eq!(leaving.outcome().code, Some(0));
    cluster.until_idle();
}

/// Prompts that a coordinator has begun with, or gone on with: it looks each up in its prefix cache.
fn begun(coordinator: &Serving) -> u64 {
    coordinator.engine()["prefix_queries"].as_u64().expect("a count")
}

#[test]
fn clients_notice_nothing_of_a_coordinator_that_stands_still_and_goes_on_nor_of_an_etcd_that_is_away() {
    let mut cluster = Cluster::start(2);
    let (asked, quiet) = quiet(&cluster);

    // One stands still until the other has taken its streams up. Then it goes on with them, and nobody listens.
    disturbed(&cluster, &asked, &quiet, || {
        let [other, victim] = cluster.coordinators() else { panic!("two coordinators") };
        assert_ne!(victim.engine()["running"], 0, "it has some of them");
        victim.signal("STOP");
        let before = begun(other);
        cluster.until_ready(1);
        until("the other one takes them up", || begun(other) > before);
        victim.signal("CONT");
    });
    cluster.until_ready(2);
    cluster.until_idle();

    // etcd goes while they stream, and all of them come again while it is away: leases of two seconds have ended long since.
    let mut etcd = cluster.take_etcd();
    disturbed(&cluster, &asked, &quiet, || etcd.kill());
    thread::sleep(Duration::from_secs(3));
    assert_eq!(undisturbed(&cluster, &asked), quiet);
    cluster.revive(etcd);
    cluster.until_ready(2);
    assert_eq!(undisturbed(&cluster, &asked), quiet);
    cluster.until_idle();
}
