//! Keys and usage as messages and back, checked; and who is asked about them.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

use tramontane_proto::v1 as pb;

use super::{Admin, AdminError};
use crate::Malformed;
use crate::registry::accounts::{Accounts, Day, KeyHash, KeyLimits, KeyRecord, NoDate, Usage, UsageId, UsageQuery};

/// What `admin` looks after keys with.
pub(super) fn of(admin: &dyn Admin) -> Result<Arc<dyn Accounts>, AdminError> {
    admin.accounts().ok_or(AdminError::NoAccounts)
}

pub(super) fn key_to_pb(key: &KeyRecord) -> pb::ApiKey {
    let KeyLimits { rpm, tpm, monthly_tokens, expires, models } = &key.limits;
    pb::ApiKey {
        name: key.name.to_string(),
        sha256: key.sha256.0.to_vec().into(),
        rpm: rpm.map(NonZeroU32::get),
        tpm: tpm.map(NonZeroU32::get),
        monthly_tokens: monthly_tokens.map(NonZeroU64::get),
        expires: *expires,
        models: models.iter().cloned().collect(),
        created: key.created,
    }
}

/// A limit of 0 is none that anybody could mean.
pub(super) fn key_from_pb(key: pb::ApiKey) -> Result<KeyRecord, Malformed> {
    let zero = |what: &str| Malformed(format!("{what} is 0"));
    let pb::ApiKey { name, sha256, rpm, tpm, monthly_tokens, expires, models, created } = key;
    let sha256: [u8; 32] =
        (*sha256).try_into().map_err(|_| Malformed(format!("sha256 has {} bytes, not 32", sha256.len())))?;
    let minute = |what, limit: Option<u32>| limit.map(|n| NonZeroU32::new(n).ok_or_else(|| zero(what))).transpose();
    let month = monthly_tokens.map(|n| NonZeroU64::new(n).ok_or_else(|| zero("monthly_tokens"))).transpose()?;
    let limits = KeyLimits {
        rpm: minute("rpm", rpm)?,
        tpm: minute("tpm", tpm)?,
        monthly_tokens: month,
        expires,
        models: models.into_iter().collect(),
    };
    Ok(KeyRecord { name: name.into(), sha256: KeyHash(sha256), limits, created })
}

pub(super) fn query_from_pb(query: &pb::ListUsageRequest) -> Result<UsageQuery, Malformed> {
    Ok(UsageQuery { key: None, from: day(&query.from)?, to: day(&query.to)? })
}

pub(super) fn row_to_pb((id, usage): &(UsageId, Usage)) -> pb::UsageRow {
    let &Usage { requests, prompt_tokens, completion_tokens } = usage;
    let (key, day, model) = (id.key.to_string(), id.day.to_string(), id.model.to_string());
    pb::UsageRow { key, day, model, requests, prompt_tokens, completion_tokens }
}

pub(super) fn row_from_pb(row: pb::UsageRow) -> Result<(UsageId, Usage), Malformed> {
    let pb::UsageRow { key, day: on, model, requests, prompt_tokens, completion_tokens } = row;
    let id = UsageId { key: key.into(), day: day(&on)?, model: model.into() };
    Ok((id, Usage { requests, prompt_tokens, completion_tokens }))
}

fn day(text: &str) -> Result<Day, Malformed> {
    text.parse().map_err(|error: NoDate| Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_rows_come_back_and_limits_of_nothing_do_not() {
        let limits = KeyLimits {
            rpm: NonZeroU32::new(3),
            tpm: None,
            monthly_tokens: NonZeroU64::new(1 << 40),
            expires: Some(5),
            models: ["m".to_owned()].into(),
        };
        let key = KeyRecord { name: "a".into(), sha256: KeyHash([9; 32]), limits, created: 7 };
        assert_eq!(key_from_pb(key_to_pb(&key)), Ok(key.clone()));
        let short = pb::ApiKey { sha256: vec![1; 31].into(), ..key_to_pb(&key) };
        for wrong in [short, pb::ApiKey { tpm: Some(0), ..key_to_pb(&key) }] {
            assert!(key_from_pb(wrong).is_err());
        }
        let id = UsageId { key: "a".into(), day: Day::at(86_400), model: "org/m".into() };
        let row = (id, Usage { requests: 1, prompt_tokens: 2, completion_tokens: 3 });
        assert_eq!(row_from_pb(row_to_pb(&row)), Ok(row));
        assert!(query_from_pb(&pb::ListUsageRequest { from: "2027-02-30".into(), to: String::new() }).is_err());
    }
}
