//! Requests in few words.

use super::api::{
    Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, ResponseOp,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
    response_op::Response,
};

/// The end of the range of all keys that begin so.
pub(crate) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

pub(crate) fn put(key: Vec<u8>, value: Vec<u8>, lease: i64) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestPut(PutRequest { key, value, lease })),
    }
}

pub(crate) fn delete(key: Vec<u8>) -> RequestOp {
    delete_range(key, Vec::new())
}

pub(crate) fn delete_range(key: Vec<u8>, range_end: Vec<u8>) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestDeleteRange(DeleteRangeRequest {
            key,
            range_end,
        })),
    }
}

pub(crate) fn get(key: Vec<u8>) -> RequestOp {
    RequestOp {
        request: Some(Request::RequestRange(RangeRequest {
            key,
            ..RangeRequest::default()
        })),
    }
}

/// What a read among the responses found.
pub(crate) fn found(response: Option<&ResponseOp>) -> Option<&super::api::KeyValue> {
    match response?.response.as_ref()? {
        Response::ResponseRange(range) => range.kvs.first(),
        Response::ResponsePut(_) | Response::ResponseDeleteRange(_) => None,
    }
}

fn compare(
    key: Vec<u8>,
    target: CompareTarget,
    result: CompareResult,
    union: TargetUnion,
) -> Compare {
    Compare {
        result: result.into(),
        target: target.into(),
        key,
        target_union: Some(union),
    }
}

/// The key was last written at this revision; 0: it is not there.
pub(crate) fn unchanged_since(key: Vec<u8>, revision: i64) -> Compare {
    compare(
        key,
        CompareTarget::Mod,
        CompareResult::Equal,
        TargetUnion::ModRevision(revision),
    )
}

/// The key was made at this revision; 0: it is not there.
pub(crate) fn made_at(key: Vec<u8>, revision: i64) -> Compare {
    compare(
        key,
        CompareTarget::Create,
        CompareResult::Equal,
        TargetUnion::CreateRevision(revision),
    )
}

/// The key is there.
pub(crate) fn exists(key: Vec<u8>) -> Compare {
    compare(
        key,
        CompareTarget::Version,
        CompareResult::Greater,
        TargetUnion::Version(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(after_prefix(b"a/"), b"a0");
        assert_eq!(after_prefix(b"a\xff"), b"b");
        assert_eq!(
            after_prefix(b"\xff"),
            b"\0",
            "which etcd reads as the end of all"
        );
    }
}
