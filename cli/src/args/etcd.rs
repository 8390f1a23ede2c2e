//! The flags of whoever uses an etcd.

use std::path::PathBuf;

use clap::Args;
use forebay_control::EtcdAccess;

/// How to get into an etcd.
#[derive(Debug, Args)]
#[command(next_help_heading = "etcd")]
pub(crate) struct EtcdArgs {
    /// Who signs the certificates of etcd (PEM), with `--store etcds://…`. [default: the system's roots]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_ETCD_CA_FILE",
        value_name = "FILE"
    )]
    pub(crate) etcd_ca_file: Option<PathBuf>,
    /// Certificate that is shown to etcd (PEM).
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_ETCD_CERT_FILE",
        value_name = "FILE"
    )]
    pub(crate) etcd_cert_file: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_ETCD_KEY_FILE",
        value_name = "FILE"
    )]
    pub(crate) etcd_key_file: Option<PathBuf>,
    /// User of etcd.
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_ETCD_USER",
        value_name = "NAME"
    )]
    pub(crate) etcd_user: Option<String>,
    /// File with that user's password.
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_ETCD_PASSWORD_FILE",
        value_name = "FILE"
    )]
    pub(crate) etcd_password_file: Option<PathBuf>,
}

impl EtcdArgs {
    /// What they come to.
    pub(crate) fn access(&self, insecure: bool) -> EtcdAccess {
        EtcdAccess {
            ca_file: self.etcd_ca_file.clone(),
            cert_file: self.etcd_cert_file.clone(),
            key_file: self.etcd_key_file.clone(),
            user: self.etcd_user.clone(),
            password_file: self.etcd_password_file.clone(),
            insecure,
        }
    }
}
