mod gate;
mod machine;
mod settings;
mod soak;
