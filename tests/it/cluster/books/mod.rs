//! The sessions of *Kubernetes in Action*, chapters 4 to 7, as a reader types them: stock kubectl and curl, the books'
//! manifests, images of the same behaviour out of a registry of our own.
//!
//! One cluster for each chapter; its sessions run at the same time, each in a namespace of its own. Where the book waits
//! for a minute the manifests here wait for seconds, and say so.

mod chapter_4;
mod chapter_5;
mod chapter_6;
mod chapter_7;
pub(crate) mod images;
mod reader;

use reader::Book;

/// A5-01 to A5-40, and of chapters 3 and 4 what is about nodes, explanations and events.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chapter_5_pods() {
    if let Some(book) = Book::open("chapter_5_pods", "it-book5", 2).await {
        book.read(&[chapter_5::SESSIONS, chapter_4::SESSIONS].concat());
    }
}

/// A6-01 to A6-41.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chapter_6_the_life_of_a_pod() {
    if let Some(book) = Book::open("chapter_6_the_life_of_a_pod", "it-book6", 1).await {
        book.read(chapter_6::SESSIONS);
    }
}

/// A7-01 to A7-20.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chapter_7_volumes() {
    if let Some(book) = Book::open("chapter_7_volumes", "it-book7", 2).await {
        book.read(chapter_7::SESSIONS);
    }
}
