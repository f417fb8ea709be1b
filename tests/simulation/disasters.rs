//! How each disaster begins and ends.

use super::script::{Death, Disaster, Mood, Who};
use super::world::{Event, Micros, SECOND, World};

impl World {
    /// The time of disasters begins.
    pub(crate) fn begin_disasters(&mut self) {
        self.began = self.now;
        for (index, scheduled) in self.script.disasters.clone().into_iter().enumerate() {
            self.after(scheduled.at, Event::Strike(index));
            self.after(scheduled.at + scheduled.lasts, Event::Relent(index));
        }
    }

    pub(crate) fn strike(&mut self, index: usize) {
        let scheduled = self.script.disasters[index];
        let until = self.now + scheduled.lasts;
        let leaders = self.leaders.len();
        let leader = |leader: usize| leader % leaders;
        self.trace.note(self.now, || format!("* {:?} until {}", scheduled.disaster, until / SECOND));
        match scheduled.disaster {
            Disaster::Kill(node, death) => self.kill(node, death),
            Disaster::KillAll(death) => (0..self.nodes.len()).for_each(|node| self.kill(node, death)),
            Disaster::Stall(node) => self.stand_still(node),
            Disaster::Partition(node, loss) => self.network.cut(node, true, loss, until),
            Disaster::OneWay(node, loss) => self.network.cut(node, false, loss, until),
            Disaster::CutOff(Who::Leader(l)) => self.cut_off(Who::Leader(leader(l)), until),
            Disaster::CutOff(who) => self.cut_off(who, until),
            Disaster::RegistryDown => self.registry_down(until),
            Disaster::Mood(node, Mood::Lies) => self.begin_to_lie(node),
            Disaster::Mood(node, mood) => self.set_mood(node, mood, until),
            Disaster::Drain(node) => self.drain(node),
            Disaster::LeaderStalls(l) => self.stop_leader(leader(l)),
            Disaster::LeaderStallsWriting(l) => self.leaders[leader(l)].stops_writing = true,
            Disaster::LeaderDies(l) => self.kill_leader(leader(l)),
            Disaster::Weather => self.network.bad_weather(until),
        }
    }

    pub(crate) fn relent(&mut self, index: usize) {
        let disaster = self.script.disasters[index].disaster;
        match disaster {
            Disaster::Kill(node, _) => self.restart(node),
            Disaster::KillAll(_) => (0..self.nodes.len()).for_each(|node| self.restart(node)),
            Disaster::Stall(node) => self.go_on(node),
            Disaster::CutOff(_) | Disaster::RegistryDown => self.heal_registry(),
            Disaster::Drain(node) => self.undrain(node),
            Disaster::LeaderStalls(leader) => self.wake_leader(leader % self.leaders.len()),
            Disaster::Partition(..)
            | Disaster::OneWay(..)
            | Disaster::Mood(..)
            | Disaster::LeaderStallsWriting(_)
            | Disaster::LeaderDies(_)
            | Disaster::Weather => {}
        }
    }

    fn restart(&mut self, node: usize) {
        self.nodes[node].dies_at_next = false;
        self.start(node);
    }

    fn begin_to_lie(&mut self, node: usize) {
        self.note(|| format!("n{node} begins to lie"));
        self.set_mood(node, Mood::Lies, Micros::MAX);
    }

    fn drain(&mut self, node: usize) {
        if !self.nodes[node].is_dead() {
            self.nodes[node].draining = true;
            self.after(0, Event::Record(node, self.nodes[node].life));
        }
    }

    fn undrain(&mut self, node: usize) {
        if self.nodes[node].is_dead() {
            return self.start(node);
        }
        if std::mem::replace(&mut self.nodes[node].draining, false) {
            self.after(0, Event::Record(node, self.nodes[node].life));
        }
    }

    /// Whether somebody lies now.
    pub(crate) fn liar(&self) -> Option<usize> {
        self.script.liar.filter(|&node| !self.nodes[node].is_dead() && self.mood(node) == Mood::Lies)
    }

    /// Everybody is well again: what the script has not ended ends.
    pub(crate) fn is_calm(&self) -> bool {
        self.now >= self.began + self.script.ends() + Death::LINGERS
    }
}

impl Death {
    /// A process that is to end with its next batch, and gets none, is forgiven when the disaster is over.
    const LINGERS: Micros = SECOND;
}
