//! Tests on a mesh in memory: no socket, no port, and thirty seconds pass at once.
//!
//! Copy these into `tests/` of your crate: `cargo test -p macula-rpc --features testing --example mesh_test`.

fn main() {}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use macula_rpc::testing::Mesh;
    use macula_rpc::{Cause, Request, Status};
    use tokio::time::Instant;

    /// Three providers of `text.upper`. The seed repeats every choice, delay and loss.
    fn mesh() -> Mesh {
        let mesh = Mesh::new(7);
        for name in ["a", "b", "c"] {
            mesh.node(name).serve("text.upper", move |request: Request| async move {
                let upper = String::from_utf8_lossy(request.payload()).to_uppercase();
                Ok::<_, Status>(format!("{upper} from {name}"))
            });
        }
        mesh
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_survives_two_dead_providers() {
        let mesh = mesh();
        let client = mesh.node("caller").client();
        mesh.kill("a");
        mesh.cut("caller", "b");
        for _ in 0..10 {
            assert_eq!(client.call("text.upper", "hello").await.unwrap(), "HELLO from c");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_provider_that_returns_is_called_again() {
        let mesh = mesh();
        let client = mesh.node("caller").client();
        mesh.partition(["caller"]);
        client.call("text.upper", "hello").await.unwrap_err();
        mesh.heal();
        client.call("text.upper", "hello").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_service_times_out_without_the_test_waiting() {
        let mesh = Mesh::new(1);
        let never = |_: Request| std::future::pending::<Result<String, Status>>();
        mesh.node("slow").serve("text.slow", never);
        let started = Instant::now();
        let minute = Duration::from_secs(60);
        let client = mesh.node("caller").client();
        let call = client.request("text.slow").timeout(minute).attempt_timeout(minute);
        let error = call.send("hello").await.unwrap_err();
        assert!(matches!(error.attempts()[0].cause, Cause::TimedOut(_)), "{error}");
        assert!(started.elapsed() >= minute);
    }
}
