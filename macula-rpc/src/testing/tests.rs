//! The mesh's faults, seen by a caller.

use std::time::Duration;

use super::Mesh;
use crate::{CallError, Request, Status};

const AWHILE: Duration = Duration::from_secs(2);

/// A mesh of one provider, whose calls take no time.
fn mesh() -> Mesh {
    let mesh = Mesh::new(7);
    mesh.node("provider").serve("text.same", async |request: Request| {
        Ok::<_, Status>(request.into_payload())
    });
    mesh
}

#[tokio::test(start_paused = true)]
async fn a_paused_provider_answers_when_it_resumes() {
    let mesh = mesh();
    let client = mesh.node("caller").client();
    assert_eq!(client.call("text.same", "before").await.unwrap(), "before");
    mesh.pause("provider");
    let resume = async {
        tokio::time::sleep(AWHILE).await;
        mesh.resume("provider");
    };
    let start = tokio::time::Instant::now();
    let (answer, ()) = tokio::join!(client.call("text.same", "after"), resume);
    assert_eq!(answer.unwrap(), "after");
    assert!(start.elapsed() >= AWHILE, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_is_not_heard_is_called_in_vain_until_the_way_is_restored() {
    let mesh = mesh();
    let client = mesh.node("caller").client();
    mesh.cut_one_way("provider", "caller");
    let call = client.request("text.same").timeout(AWHILE);
    let error = call.send("x").await.unwrap_err();
    assert!(
        matches!(
            error,
            CallError::DeadlineExceeded { .. } | CallError::AllProvidersFailed { .. }
        ),
        "{error}"
    );
    mesh.restore("provider", "caller");
    // The dial that began before is over.
    tokio::time::sleep(2 * AWHILE).await;
    assert_eq!(client.call("text.same", "y").await.unwrap(), "y");
}
