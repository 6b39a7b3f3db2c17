//! stub
/// stub
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct OrderError;
/// stub
pub fn order() -> Result<(), OrderError> { Ok(()) }
