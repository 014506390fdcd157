//! The live view: what keys do ([`app`]), what each page looks like ([`queues`], [`queue`], [`calls`], [`processes`],
//! [`help`]) put together ([`view`]) of parts ([`paint`], [`chart`]), and the terminal that it is drawn on ([`terminal`]), the one part that
//! is not pure. What is shown comes in as [`content::Content`]; nothing here knows where from.

pub mod app;
pub mod calls;
pub mod chart;
pub mod content;
pub mod help;
pub mod paint;
pub mod processes;
pub mod queue;
pub mod queues;
pub mod terminal;
pub mod view;

#[cfg(test)]
mod tests;
