//! The one door between the messages about grants and the domain. Whatever comes in gives a message
//! or an error, never a panic.

use alloc::{string::String, vec::Vec};

use policy::{
    fence::{EPOCH_MAX, Grant, HolderId, Name, Revision, Stamp, TermsId, Withheld},
    hop::{InvalidKeys, Keys},
    topology::check_name,
};
use prost::Message;

use crate::wire;

/// A message of a proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HolderSays {
    Hello {
        holder: HolderId,
        zone: Name,
        /// For people.
        node: String,
        /// The role that it claims.
        role: String,
    },
    Ask {
        nonce: u64,
        /// Those of its policy; none where it does not say.
        terms: Option<TermsId>,
    },
    Drained {
        cell: Name,
        fence: Stamp,
    },
}

/// A message of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GrantorSays {
    Grants {
        nonce: u64,
        grants: Vec<(Name, Grant)>,
        withheld: Option<Withheld>,
    },
    Revoke {
        cell: Name,
        fence: Stamp,
    },
    Invite,
    /// The keys of hops; none for a proxy that forwards nothing.
    HopKeys(Option<Keys>),
}

/// Why bytes are no message. Every variant names the field.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidMessage {
    #[error("not a message about grants: {0}")]
    Malformed(prost::DecodeError),
    #[error("{field}: missing")]
    Missing { field: &'static str },
    #[error("hello.holder: {0} bytes, where 16 are needed")]
    Holder(usize),
    #[error("{field}: {name:?} is no name")]
    Name { field: &'static str, name: String },
    #[error("hello.node: longer than {NODE_BYTES_MAX} bytes")]
    Node,
    #[error("hello.role: longer than {ROLE_BYTES_MAX} bytes")]
    Role,
    #[error("{field}: epoch {epoch}, and the highest one is {EPOCH_MAX}")]
    Epoch { field: &'static str, epoch: u64 },
    #[error("hop_keys.secrets: {0}")]
    HopKeys(InvalidKeys),
}

/// The longest name of a node that is read, in bytes.
pub const NODE_BYTES_MAX: usize = 256;
/// The longest name of a role that is read, in bytes.
pub const ROLE_BYTES_MAX: usize = 32;

impl HolderSays {
    /// Reads one message.
    pub fn decode(bytes: &[u8]) -> Result<HolderSays, InvalidMessage> {
        let message = wire::HolderMessage::decode(bytes).map_err(InvalidMessage::Malformed)?;
        HolderSays::try_from(message)
    }

    /// The bytes of one message.
    pub fn encode(&self) -> Vec<u8> {
        wire::HolderMessage::from(self).encode_to_vec()
    }
}

impl GrantorSays {
    /// Reads one message.
    pub fn decode(bytes: &[u8]) -> Result<GrantorSays, InvalidMessage> {
        let message = wire::GrantorMessage::decode(bytes).map_err(InvalidMessage::Malformed)?;
        GrantorSays::try_from(message)
    }

    /// The bytes of one message.
    pub fn encode(&self) -> Vec<u8> {
        wire::GrantorMessage::from(self).encode_to_vec()
    }
}

impl TryFrom<wire::HolderMessage> for HolderSays {
    type Error = InvalidMessage;

    fn try_from(message: wire::HolderMessage) -> Result<Self, InvalidMessage> {
        use wire::holder_message::Message;
        match message.message {
            Some(Message::Hello(hello)) => {
                let found = hello.holder.len();
                let bytes: [u8; 16] =
                    (hello.holder.try_into()).map_err(|_| InvalidMessage::Holder(found))?;
                if hello.node.len() > NODE_BYTES_MAX {
                    return Err(InvalidMessage::Node);
                }
                if hello.role.len() > ROLE_BYTES_MAX {
                    return Err(InvalidMessage::Role);
                }
                Ok(HolderSays::Hello {
                    holder: HolderId(u128::from_be_bytes(bytes)),
                    zone: name("hello.zone", hello.zone)?,
                    node: hello.node,
                    role: hello.role,
                })
            }
            Some(Message::Ask(ask)) => Ok(HolderSays::Ask {
                nonce: ask.nonce,
                terms: Some(TermsId(ask.terms)).filter(|terms| *terms != TermsId::NONE),
            }),
            Some(Message::Drained(drained)) => Ok(HolderSays::Drained {
                cell: name("drained.cell", drained.cell)?,
                fence: stamp("drained.fence", drained.fence)?,
            }),
            None => Err(InvalidMessage::Missing { field: "message" }),
        }
    }
}

impl TryFrom<wire::GrantorMessage> for GrantorSays {
    type Error = InvalidMessage;

    fn try_from(message: wire::GrantorMessage) -> Result<Self, InvalidMessage> {
        use wire::grantor_message::Message;
        match message.message {
            Some(Message::Grants(grants)) => {
                let each = grants.grants.into_iter().map(|grant| {
                    let stamp = stamp("grants.stamp", grant.stamp)?;
                    let ttl = grant.ttl_us;
                    Ok((name("grants.cell", grant.cell)?, Grant { stamp, ttl }))
                });
                Ok(GrantorSays::Grants {
                    nonce: grants.nonce,
                    grants: each.collect::<Result<_, InvalidMessage>>()?,
                    withheld: match wire::Withheld::try_from(grants.withheld) {
                        Ok(wire::Withheld::OtherTerms) => Some(Withheld::OtherTerms),
                        Ok(wire::Withheld::UnsaidTerms) => Some(Withheld::UnsaidTerms),
                        // One of a later version says no more than that there are none.
                        Ok(wire::Withheld::Unspecified) | Err(_) => None,
                    },
                })
            }
            Some(Message::Revoke(revoke)) => Ok(GrantorSays::Revoke {
                cell: name("revoke.cell", revoke.cell)?,
                fence: stamp("revoke.fence", revoke.fence)?,
            }),
            Some(Message::Invite(wire::Invite {})) => Ok(GrantorSays::Invite),
            Some(Message::HopKeys(keys)) => Ok(GrantorSays::HopKeys(match keys.secrets {
                none if none.is_empty() => None,
                secrets => Some(Keys::new(secrets).map_err(InvalidMessage::HopKeys)?),
            })),
            None => Err(InvalidMessage::Missing { field: "message" }),
        }
    }
}

impl From<&HolderSays> for wire::HolderMessage {
    fn from(says: &HolderSays) -> Self {
        use wire::holder_message::Message;
        let message = match says {
            HolderSays::Hello {
                holder,
                zone,
                node,
                role,
            } => Message::Hello(wire::Hello {
                holder: holder.0.to_be_bytes().to_vec(),
                zone: String::from(&**zone),
                node: node.clone(),
                role: role.clone(),
            }),
            HolderSays::Ask { nonce, terms } => Message::Ask(wire::Ask {
                nonce: *nonce,
                terms: terms.unwrap_or(TermsId::NONE).0,
            }),
            HolderSays::Drained { cell, fence } => Message::Drained(wire::Drained {
                cell: String::from(&**cell),
                fence: Some((*fence).into()),
            }),
        };
        wire::HolderMessage {
            message: Some(message),
        }
    }
}

impl From<&GrantorSays> for wire::GrantorMessage {
    fn from(says: &GrantorSays) -> Self {
        use wire::grantor_message::Message;
        let message = match says {
            GrantorSays::Grants {
                nonce,
                grants,
                withheld,
            } => {
                let each = grants.iter().map(|(cell, grant)| wire::Grant {
                    cell: String::from(&**cell),
                    stamp: Some(grant.stamp.into()),
                    ttl_us: grant.ttl,
                });
                Message::Grants(wire::Grants {
                    nonce: *nonce,
                    grants: each.collect(),
                    withheld: match withheld {
                        None => wire::Withheld::Unspecified,
                        Some(Withheld::OtherTerms) => wire::Withheld::OtherTerms,
                        Some(Withheld::UnsaidTerms) => wire::Withheld::UnsaidTerms,
                    }
                    .into(),
                })
            }
            GrantorSays::Revoke { cell, fence } => Message::Revoke(wire::Revoke {
                cell: String::from(&**cell),
                fence: Some((*fence).into()),
            }),
            GrantorSays::Invite => Message::Invite(wire::Invite {}),
            GrantorSays::HopKeys(keys) => {
                let secrets = keys.iter().flat_map(Keys::secrets);
                Message::HopKeys(wire::HopKeys {
                    secrets: secrets.map(String::from).collect(),
                })
            }
        };
        wire::GrantorMessage {
            message: Some(message),
        }
    }
}

impl From<Stamp> for wire::Stamp {
    fn from(stamp: Stamp) -> Self {
        wire::Stamp {
            epoch: stamp.epoch,
            revision: stamp.revision.0,
        }
    }
}

fn name(field: &'static str, name: String) -> Result<Name, InvalidMessage> {
    match check_name(&name) {
        Ok(()) => Ok(Name::from(name)),
        Err(_) => Err(InvalidMessage::Name { field, name }),
    }
}

fn stamp(field: &'static str, stamp: Option<wire::Stamp>) -> Result<Stamp, InvalidMessage> {
    let stamp = stamp.ok_or(InvalidMessage::Missing { field })?;
    if stamp.epoch > EPOCH_MAX {
        let epoch = stamp.epoch;
        return Err(InvalidMessage::Epoch { field, epoch });
    }
    Ok(Stamp {
        epoch: stamp.epoch,
        revision: Revision(stamp.revision),
    })
}
