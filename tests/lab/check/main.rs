//! The checker and the replay (`src/lab/check`): each broken policy trips the check that it should and no other, as does each
//! damage to a log; sound policies trip none.

mod broken;
mod machine;

mod damaged;
mod figures;
mod flaws;
mod replayed;
mod shares;
mod shrunk;
mod sound;
