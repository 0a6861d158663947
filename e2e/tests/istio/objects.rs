//! Weights and instances of Tidegate in an Istio mesh, as objects of Istio.

use anyhow::{Result, ensure};
use e2e::load::Load;
use serde_json::json;

use crate::HOST;
use crate::scene::{A, B, C, NAME, ROLE, Scene, name, ours};

#[tokio::test]
async fn each_zone_has_its_weights_and_they_follow_the_instances() -> Result<()> {
    let scene = Scene::start("istio-objects", "").await?;
    let near = scene.sidecar("app-a", "shanghai", A).await?;
    let far = scene.sidecar("app-cc", "beijing", C).await?;
    let read = scene.request();
    scene.until_served_by(&near, &read, A).await?;
    scene.until_served_by(&far, &read, C).await?;
    // A guest's stamp decides, whatever the weights say.
    let stamped = scene
        .request()
        .header("x-tidegate-to", format!("orders/{B}"));
    scene.until_served_by(&near, &stamped, B).await?;
    // Zone after zone loses its instance.
    let registry = scene.control_plane.registry();
    registry.remove(&name(A)).await?;
    scene.until_served_by(&near, &read, B).await?;
    registry.remove(&name(B)).await?;
    scene.until_served_by(&near, &read, C).await?;
    scene.until_served_by(&near, &stamped, C).await?;
    for sidecar in [&near, &far] {
        let rejections = sidecar.rejections().await?;
        ensure!(rejections == 0, "{rejections} configurations were rejected");
    }
    Ok(())
}

#[tokio::test]
async fn no_read_fails_when_a_zone_dies() -> Result<()> {
    let mut scene = Scene::start("istio-zone-killed", "").await?;
    let sidecar = scene.sidecar("app-a", "shanghai", A).await?;
    let read = scene.request();
    scene.until_served_by(&sidecar, &read, A).await?;
    let at = sidecar.outbound(scene.port).await?;
    let mut load = Load::steady(vec![(at, read.clone())]).start();
    load.next(200).await?;
    // Its process dies, and nobody says so to the registry for a while.
    scene.instances[0].take();
    let unnoticed = load.next(500).await?;
    unnoticed.check_no_failure()?;
    scene.control_plane.registry().remove(&name(A)).await?;
    scene.until_served_by(&sidecar, &read, B).await?;
    // It is back.
    scene.instances[0] = Some(scene.serve(A).await?);
    scene.until_served_by(&sidecar, &read, A).await?;
    load.stop().await.check_no_failure()
}

#[tokio::test]
async fn objects_of_others_are_never_touched() -> Result<()> {
    let theirs = format!(
        "{{apiVersion: networking.istio.io/v1, kind: VirtualService, \
         metadata: {{name: theirs, namespace: shop}}, spec: {{hosts: [{HOST}], \
         http: [{{route: [{{destination: {{host: elsewhere.example}}}}]}}]}}}}"
    );
    let mut scene = Scene::start("istio-foreign", &theirs).await?;
    let before = scene.objects.get(&theirs).await?;
    let told = scene.until_condition("TG8002", true).await?;
    ensure!(told.contains("VirtualService shop/theirs"), "{told}");
    for kind in ["ServiceEntry", "DestinationRule", "VirtualService"] {
        scene.until_there(&ours(kind), false).await?;
    }
    // A field of ours that somebody else has set by then is a conflict, not a change.
    scene.objects.delete(&theirs).await?;
    scene.until_condition("TG8002", false).await?;
    scene.until_there(&ours("VirtualService"), true).await?;
    ensure!(
        before["metadata"]["resourceVersion"].is_string(),
        "{before}"
    );
    // A label alone does not make an object ours.
    let labelled = "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, \
         metadata: {name: labelled, namespace: shop, \
         labels: {app.kubernetes.io/managed-by: tidegate}}, \
         spec: {hosts: [labelled.example], resolution: DNS, \
         ports: [{number: 80, name: http, protocol: HTTP}]}}";
    scene.objects.apply(labelled).await?;
    // What is not configured any more goes.
    scene.control_plane.configure(|config| {
        if let Some(istio) = &mut config.istio {
            istio["services"] = json!([]);
        }
    })?;
    for kind in ["ServiceEntry", "DestinationRule", "VirtualService"] {
        scene.until_there(&ours(kind), false).await?;
    }
    scene.until_there(labelled, true).await?;
    // The role suffices, and has no verb too many.
    scene.check_rights()
}

#[tokio::test]
async fn an_object_of_others_with_the_name_of_ours_is_left_alone() -> Result<()> {
    let theirs = format!(
        "{{apiVersion: networking.istio.io/v1, kind: DestinationRule, \
         metadata: {{name: {NAME}, namespace: shop}}, spec: {{host: theirs.example}}}}"
    );
    let scene = Scene::start("istio-same-name", &theirs).await?;
    let told = scene.until_condition("TG8003", true).await?;
    ensure!(told.contains("Tidegate has not made it"), "{told}");
    scene.until_there(&ours("VirtualService"), true).await?;
    let stored = scene.objects.get(&theirs).await?;
    ensure!(
        stored["spec"] == json!({ "host": "theirs.example" }),
        "{stored}"
    );
    Ok(())
}

#[tokio::test]
async fn a_field_of_another_manager_is_a_conflict_and_is_left_alone() -> Result<()> {
    let scene = Scene::start("istio-conflict", "").await?;
    scene.until_there(&ours("DestinationRule"), true).await?;
    // Somebody takes the host by force.
    let taken = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": { "name": NAME, "namespace": "shop" },
        "spec": { "host": "taken.example" },
    });
    let forced = scene.objects.clone().managed_by("somebody").forced();
    forced.apply_one(&taken).await?;
    let told = scene.until_condition("TG8003", true).await?;
    ensure!(told.contains("somebody"), "{told}");
    let stored = scene.objects.get(&ours("DestinationRule")).await?;
    ensure!(stored["spec"]["host"] == "taken.example", "{stored}");
    // Their object goes, and ours comes back.
    scene.objects.delete(&ours("DestinationRule")).await?;
    scene.until_condition("TG8003", false).await?;
    scene.until_there(&ours("DestinationRule"), true).await?;
    let stored = scene.objects.get(&ours("DestinationRule")).await?;
    ensure!(stored["spec"]["host"] == HOST, "{stored}");
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_by_restarts_in_any_order() -> Result<()> {
    let mut scene = Scene::start("istio-restarts", "").await?;
    let sidecar = scene.sidecar("app-a", "shanghai", A).await?;
    let read = scene.request();
    scene.until_served_by(&sidecar, &read, A).await?;
    let at = sidecar.outbound(scene.port).await?;
    let load = Load::steady(vec![(at, read.clone())]).start();
    // Tidegate is away: the mesh goes on with what it has.
    scene.control_plane.process().kill()?;
    scene.istiod.restart().await?;
    scene.until_served_by(&sidecar, &read, A).await?;
    scene.control_plane.restart().await?;
    // The API server is away while a zone goes: its weights come with the server.
    scene.kubernetes.process().kill()?;
    scene.control_plane.registry().remove(&name(A)).await?;
    scene.until_condition("TG8001", true).await?;
    scene.kubernetes.restart().await?;
    scene.until_condition("TG8001", false).await?;
    scene.until_served_by(&sidecar, &read, B).await?;
    // istiod is away while it comes back.
    scene.istiod.process().kill()?;
    scene.instances[0] = Some(scene.serve(A).await?);
    scene.istiod.restart().await?;
    scene.until_served_by(&sidecar, &read, A).await?;
    load.stop().await.check_no_failure()
}

#[tokio::test]
async fn without_the_right_to_write_a_condition_says_so() -> Result<()> {
    let scene = Scene::start("istio-no-role", "").await?;
    scene.until_there(&ours("VirtualService"), true).await?;
    let read_only = ROLE.replace(", create, patch, delete", "");
    scene.objects.apply(&read_only).await?;
    scene.control_plane.registry().remove(&name(A)).await?;
    let told = scene.until_condition("TG8003", true).await?;
    ensure!(told.contains("forbidden"), "{told}");
    scene.objects.apply(ROLE).await?;
    scene.until_condition("TG8003", false).await.map(drop)
}
