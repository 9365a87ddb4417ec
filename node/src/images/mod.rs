//! Images: pull policies over an [`ImageSource`].

mod policy;

pub(crate) use policy::PolicyImages;
