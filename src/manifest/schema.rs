//! The JSON Schema (draft-07, which editors know) of a manifest.
//!
//! The derive describes the mappings; what it cannot know is added here: the short forms, and the rules "one of" that
//! an editor can show while a person types.

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use super::Manifest;

/// The types that may also be written as a scalar, and the definition of that.
const SHORT_FORMS: [(&str, &str); 6] = [
    ("Cpus", "CpuCount"),
    ("PackageEntry", "PackageName"),
    ("Memory", "ByteSize"),
    ("DiskEntry", "ByteSize"),
    ("NicEntry", "ResourceName"),
    ("DeviceMatch", "SlotOrFunction"),
];

/// The schema of `host.yaml`.
pub fn schema() -> Value {
    let mut root = SchemaSettings::draft07().into_generator().into_root_schema_for::<Manifest>().to_value();
    root["title"] = json!("gpuvm host manifest");
    root["properties"]["version"]["const"] = json!(1);
    let definitions = &mut root["definitions"];
    definitions["DeviceMatch"]["minProperties"] = json!(1);
    definitions["DeviceMatch"]["maxProperties"] = json!(1);
    definitions["FileEntry"]["oneOf"] =
        ["content", "source", "template"].map(|name| json!({ "required": [name] })).into();
    // One of them says how many there are.
    let cpus = &mut definitions["Cpus"];
    cpus.as_object_mut().map(|cpus| cpus.remove("required"));
    cpus["anyOf"] = ["count", "sockets", "cores", "threads"].map(|name| json!({ "required": [name] })).into();
    definitions["StorageEntry"]["oneOf"] =
        ["dir", "lvm", "lvmThin", "zfs"].map(|name| json!({ "required": [name] })).into();
    definitions["DiskEntry"]["oneOf"] = ["size", "path"].map(|name| json!({ "required": [name] })).into();
    for (name, short) in SHORT_FORMS {
        let mut mapping = definitions[name].take();
        let description = mapping.as_object_mut().and_then(|mapping| mapping.remove("description"));
        definitions[name] = json!({
            "description": description,
            "anyOf": [{ "$ref": format!("#/definitions/{short}") }, mapping],
        });
    }
    root
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_form_is_described_beside_its_mapping() {
        let schema = schema();
        for (name, short) in SHORT_FORMS {
            let definition = &schema["definitions"][name];
            assert_eq!(definition["anyOf"][1]["type"], "object", "{name}");
            assert_eq!(definition["anyOf"][1]["additionalProperties"], false, "{name}");
            assert!(definition["description"].is_string(), "{name}");
            let kind = if short == "CpuCount" { "integer" } else { "string" };
            assert_eq!(schema["definitions"][short]["type"], kind, "{short}");
        }
    }
}
