//! The places of the guide, and the notes that visitors leave at them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use macula_examples_tonic::route::{Note, Place, Point};

const PLACES: [(&str, i32, i32); 4] = [
    ("market", 0, 0),
    ("bridge", 120, 40),
    ("mill", 200, 90),
    ("tower", 500, 500),
];

/// Notes kept at a point; older ones go.
const MAX_NOTES: usize = 16;

pub(crate) fn places() -> impl Iterator<Item = Place> + Send {
    PLACES.into_iter().map(|(name, east, north)| Place {
        name: name.into(),
        at: Some(Point { east, north }),
    })
}

pub(crate) type Notes = Arc<Mutex<HashMap<(i32, i32), Vec<Note>>>>;

/// Leaves a note, and gives those that were there before.
pub(crate) fn leave(notes: &Notes, note: Note) -> Vec<Note> {
    let point = note.at.unwrap_or_default();
    let mut notes = notes.lock().unwrap_or_else(PoisonError::into_inner);
    let here = notes.entry((point.east, point.north)).or_default();
    let before = here.clone();
    if here.len() == MAX_NOTES {
        here.remove(0);
    }
    here.push(note);
    before
}
