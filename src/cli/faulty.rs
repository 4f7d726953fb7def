//! The echo server that misbehaves on purpose.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use futures_lite::{AsyncReadExt, AsyncWriteExt};
use tinyloop::faults::{Drawn, Fault, Faulty, Plan};
use tinyloop::{Connection, Framer, Framing};

/// The plan from the program's options, if they contain faults. Without a seed, draws a seed.
pub(crate) fn plan(faults: Vec<Fault>, seed: Option<u64>) -> Option<Plan> {
    (!faults.is_empty()).then(|| Plan::new(seed.unwrap_or_else(draw_seed), faults))
}

/// A seed that is short enough to be typed.
pub(crate) fn draw_seed() -> u64 {
    fastrand::u64(..1_000_000)
}

/// The faults of a server's connections, drawn in the order in which they are accepted.
#[derive(Clone)]
pub(crate) struct Fates(Rc<RefCell<Drawing>>);

struct Drawing {
    plan: Plan,
    accepted: u64,
    /// The draws of connections whose handler has not started, by connection id.
    drawn: HashMap<u64, Drawn>,
}

impl Fates {
    pub(crate) fn new(plan: Plan) -> Fates {
        Fates(Rc::new(RefCell::new(Drawing {
            plan,
            accepted: 0,
            drawn: HashMap::new(),
        })))
    }

    /// Draws the faults of a connection that was just accepted. Returns their text for the connection's line.
    pub(crate) fn draw(&self, id: u64) -> String {
        let mut drawing = self.0.borrow_mut();
        drawing.accepted += 1;
        let drawn = drawing.plan.draw(drawing.accepted);
        let line = drawn.to_string();
        drawing.drawn.insert(id, drawn);
        line
    }

    /// Adds the drawn faults to a connection.
    fn befall(&self, connection: Connection) -> Faulty<Connection> {
        let drawn = self.0.borrow_mut().drawn.remove(&connection.id());
        let drawn = drawn.expect("a connection is told of before its handler starts");
        Faulty::connection(connection, drawn)
    }

    /// Echoes like [`tinyloop::echo_framed`], but with faults.
    pub(crate) async fn echo(
        self,
        connection: Connection,
        prefix: &[u8],
        framing: Framing,
    ) -> io::Result<()> {
        connection.end_when_draining();
        let mut connection = self.befall(connection);
        let mut framer = Framer::new(prefix, framing);
        let mut chunk = vec![0; framer.chunk_max()];
        let mut reply = Vec::new();
        loop {
            let received = connection.read(&mut chunk).await?;
            if received == 0 {
                connection.delay_close().await;
                return Ok(());
            }
            reply.clear();
            framer.frame(&chunk[..received], &mut reply);
            connection.write_all(&reply).await?;
        }
    }
}
