//! Typed messages: read and written where they should be, and errors when they cannot be.

use macula_rpc::{CallError, Request, Response, Status, StatusCode, typed};

use crate::mesh::{caller, directory, name, serving};

#[tokio::test]
async fn text_is_a_message_and_metadata_travels_beside_it() {
    let peer = serving(typed(async |request: Request<String>| {
        let metadata = request.metadata().clone();
        Ok::<_, Status>(Response::new(request.into_payload().to_uppercase()).with_metadata(metadata))
    }))
    .await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let call = builder
        .build()
        .request("api.compute")
        .metadata([("k", "v")].into_iter().collect());
    let answer = call.send_typed::<_, String>("größe").await.unwrap();
    assert_eq!(answer.payload(), "GRÖSSE");
    assert_eq!(answer.into_response().metadata().get("k").unwrap(), "v");
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_the_callers_fault_and_final() {
    let never = typed(async |_: Request<String>| -> Result<(), Status> { panic!("it cannot be read") });
    let peers = [
        serving(never).await,
        serving(typed(async |_: Request<String>| Ok::<_, Status>(()))).await,
    ];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(macula_rpc::Strategy::First).build();
    let error = client.call_typed::<_, ()>(name(), vec![0xff]).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Answered { status, .. } if status.code() == StatusCode::InvalidArgument),
        "{error}"
    );
    assert!(error.to_string().contains("utf-8"), "{error}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_an_error_that_names_who_answered() {
    let peers = [
        serving(async |_: Request| Ok::<_, Status>(vec![0xff])).await,
        serving(async |_: Request| Ok::<_, Status>("fine")).await,
    ];
    let (_endpoint, builder) = caller(directory(&peers)).await;
    let client = builder.strategy(macula_rpc::Strategy::First).build();
    let error = client.call_typed::<_, String>(name(), "").await.unwrap_err();
    assert!(matches!(error, CallError::Undecodable { .. }), "{error}");
    assert!(error.to_string().contains(&peers[0].id().short()), "{error}");
}

#[cfg(feature = "json")]
mod json {
    use std::collections::BTreeMap;

    use macula_rpc::{CallError, Json, Request, Status, typed};

    use crate::mesh::{caller, directory, name, serving};

    #[tokio::test]
    async fn json_there_and_back() {
        let peer = serving(typed(async |request: Request<Json<BTreeMap<String, i64>>>| {
            Ok::<_, Status>(Json(request.into_payload().0.values().sum::<i64>()))
        }))
        .await;
        let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
        let client = builder.build();
        let numbers = Json(BTreeMap::from([("a", 40), ("b", 2)]));
        let Json(sum): Json<i64> = client.call_typed(name(), numbers).await.unwrap();
        assert_eq!(sum, 42);
    }

    #[tokio::test]
    async fn what_json_cannot_express_is_not_sent() {
        let peer = crate::mesh::Peer::echo().await;
        let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
        let keys_must_be_text = Json(BTreeMap::from([((1, 2), 3)]));
        let error = builder
            .build()
            .call_typed::<_, ()>(name(), keys_must_be_text)
            .await
            .unwrap_err();
        assert!(matches!(error, CallError::Unencodable { .. }), "{error}");
        assert_eq!(peer.calls(), 0);
    }

    #[tokio::test]
    async fn an_answer_that_json_cannot_express_is_the_providers_fault() {
        let peer = serving(typed(async |_: Request<()>| {
            Ok::<_, Status>(Json(BTreeMap::from([((1, 2), 3)])))
        }))
        .await;
        let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
        let error = builder.build().call_typed::<_, ()>(name(), ()).await.unwrap_err();
        assert!(error.to_string().contains("could not be written"), "{error}");
    }
}

#[cfg(feature = "prost")]
#[tokio::test]
async fn protocol_buffers_there_and_back() {
    use macula_rpc::Prost;

    let peer = serving(typed(async |request: Request<Prost<String>>| {
        Ok::<_, Status>(Prost(u64::try_from(request.into_payload().0.len()).unwrap_or_default()))
    }))
    .await;
    let (_endpoint, builder) = caller(directory(std::slice::from_ref(&peer))).await;
    let Prost(length): Prost<u64> = builder
        .build()
        .call_typed(name(), Prost("seven b".to_owned()))
        .await
        .unwrap();
    assert_eq!(length, 7);
}
