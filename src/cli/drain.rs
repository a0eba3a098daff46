//! `moim drain` and `moim undrain`: out of service without stopping, and back.

use clap::Args;

use super::{
    Failure,
    admin::{Admin, AdminArgs, Cluster},
};

#[derive(Args)]
#[command(after_help = "Example:\n  moim drain node2 --admin 127.0.0.1:3101")]
pub struct Drain {
    /// The node's name
    node: String,
    #[command(flatten)]
    admin: AdminArgs,
}

#[derive(Args)]
#[command(after_help = "Example:\n  moim undrain node2 --admin 127.0.0.1:3101")]
pub struct Undrain {
    /// The node's name
    node: String,
    #[command(flatten)]
    admin: AdminArgs,
}

impl Drain {
    pub async fn run(self) -> Result<(), Failure> {
        let admin = Admin::from(self.admin);
        must_exist(&admin.cluster().await?, &self.node)?;
        drain(&admin, &self.node).await?;
        println!("{0} is draining: its clients move to the others. \"moim undrain {0}\" takes it back.", self.node);
        Ok(())
    }
}

impl Undrain {
    pub async fn run(self) -> Result<(), Failure> {
        let admin = Admin::from(self.admin);
        must_exist(&admin.cluster().await?, &self.node)?;
        // Only the node itself can take clients again; whoever is asked passes it on.
        admin.act(&format!("/v1/nodes/{}/undrain", self.node)).await?;
        println!("{} is in service again.", self.node);
        Ok(())
    }
}

/// Asks the cluster for `node`'s drain; refused when another one is draining or the quorum would be lost.
pub async fn drain(admin: &Admin, node: &str) -> Result<(), Failure> {
    admin.act(&format!("/v1/nodes/{node}/drain")).await
}

fn must_exist(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    if cluster.nodes.iter().any(|node| node.name == name) {
        return Ok(());
    }
    let names: Vec<&str> = cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    Err(Failure::Usage(format!("there is no node \"{name}\"; there are {}", names.join(", "))))
}
