//! Who is asked in a round.

use crate::id::ClientId;
use crate::limits::{MAX_COHORT, MAX_ROUNDS};
use crate::participation::Participation;
use crate::rules::staleness::{Decay, Staleness};
use rand::seq::SliceRandom as _;
use serde::{Deserialize, Serialize};

/// The `[cohort]` table of a job: a rule for the draw, and how often a client may take part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawCohort", into = "RawCohort")]
pub struct Cohort {
    rule: CohortRule,
    participation: Option<Participation>,
}

/// How a cohort is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CohortRule {
    /// Everyone who is connected. `size` is the number that the job counts on: the fixed denominator.
    All {
        /// Clients expected.
        size: u32,
        /// A round with fewer usable updates is not released.
        min_clients: u32,
    },
    /// A uniform draw of `size` of those connected.
    Uniform {
        /// Clients drawn.
        size: u32,
        /// A round with fewer usable updates is not released.
        min_clients: u32,
    },
    /// Each client by itself with probability `rate`, at most `cap` of them. The number drawn is as secret as the draw:
    /// nothing is divided by it, and no round fails because of it.
    Poisson {
        /// The probability with which a client is drawn.
        rate: f64,
        /// Clients in the population, a public figure: the fixed denominator is `rate` times this.
        population: u32,
        /// Most clients of one round; of more that are drawn, as many are kept by chance.
        cap: u32,
        /// A round begins once as many are connected, before anybody is drawn.
        min_clients: u32,
    },
    /// FedBuff (Nguyen et al. 2022, arXiv 2106.06639): clients train all the time, each from the newest model at the time it
    /// was asked, and a round is released over the next `buffer` updates that come in.
    Buffered(Buffered),
}

/// The numbers of asynchronous rounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffered {
    /// Most clients at work at once.
    pub concurrency: u32,
    /// Updates of a release, each of another client: the fixed denominator.
    pub buffer: u32,
    /// Most releases since the model that an update began from.
    pub max_staleness: u32,
    /// What an older update counts.
    pub decay: Decay,
}

impl Buffered {
    /// The weights in a job of this largest weight of a client.
    ///
    /// # Errors
    /// A sentence, if `max_weight` leaves no room for fractions.
    pub fn staleness(&self, max_weight: u32) -> Result<Staleness, String> {
        Staleness::new(self.decay, self.max_staleness, max_weight)
    }

    /// Who gets a free place: `places` of the candidates by a fair draw, sorted by name.
    pub fn refill(
        &self,
        mut candidates: Vec<ClientId>,
        places: usize,
        rng: &mut impl rand::CryptoRng,
    ) -> Vec<ClientId> {
        if candidates.len() > places {
            candidates.shuffle(rng);
            candidates.truncate(places);
        }
        candidates.sort();
        candidates
    }
}

impl Cohort {
    /// A cohort under a rule.
    pub fn new(rule: CohortRule) -> Self {
        Self { rule, participation: None }
    }

    /// The rule of the draw.
    pub fn rule(&self) -> CohortRule {
        self.rule
    }

    /// How often a client may take part; `None`: in each round.
    pub fn participation(&self) -> Option<Participation> {
        self.participation
    }

    /// The numbers of asynchronous rounds, if these are.
    pub fn buffered(&self) -> Option<Buffered> {
        match self.rule {
            CohortRule::Buffered(buffered) => Some(buffered),
            _ => None,
        }
    }

    /// Checks the numbers.
    ///
    /// # Errors
    /// A sentence that says which number is wrong.
    pub fn validate(&self) -> Result<(), String> {
        self.rule.validate()
    }

    /// The most updates that a release may have.
    pub fn size(&self) -> u32 {
        match self.rule {
            CohortRule::All { size, .. } | CohortRule::Uniform { size, .. } => size,
            CohortRule::Poisson { cap, .. } => cap,
            CohortRule::Buffered(b) => b.buffer,
        }
    }

    /// Connected clients that make waiting for more of them pointless.
    pub fn whole(&self) -> u32 {
        match self.rule {
            CohortRule::All { size, .. } | CohortRule::Uniform { size, .. } => size,
            CohortRule::Poisson { population, .. } => population,
            CohortRule::Buffered(b) => b.concurrency.max(b.buffer),
        }
    }

    /// What a sum of updates is divided by where the divisor must not follow the number that came in.
    pub fn denominator(&self) -> f64 {
        match self.rule {
            CohortRule::All { size, .. } | CohortRule::Uniform { size, .. } => f64::from(size),
            CohortRule::Poisson { rate, population, .. } => rate * f64::from(population),
            CohortRule::Buffered(b) => f64::from(b.buffer),
        }
    }

    /// The fewest connected clients with which a round begins; of asynchronous rounds the first one: a buffer holds one update
    /// of a client.
    pub fn min_clients(&self) -> u32 {
        match self.rule {
            CohortRule::All { min_clients, .. }
            | CohortRule::Uniform { min_clients, .. }
            | CohortRule::Poisson { min_clients, .. } => min_clients,
            CohortRule::Buffered(b) => b.buffer,
        }
    }

    /// The fewest updates that a release may rest on: none where the number of updates tells of the draw.
    pub fn min_updates(&self) -> u32 {
        match self.rule {
            CohortRule::All { min_clients, .. } | CohortRule::Uniform { min_clients, .. } => min_clients,
            CohortRule::Poisson { .. } => 0,
            CohortRule::Buffered(b) => b.buffer,
        }
    }

    /// Draws the cohort, at most [`Cohort::size`] clients, sorted by name. `None` while fewer than
    /// [`Cohort::min_clients`] are there. A Poisson draw may be empty.
    ///
    /// `All` also stops at `size`: a fixed denominator must not meet more clients than it was set for.
    pub fn draw(&self, present: &[ClientId], rng: &mut impl rand::CryptoRng) -> Option<Vec<ClientId>> {
        if present.len() < self.min_clients() as usize {
            return None;
        }
        let mut drawn = present.to_vec();
        drawn.sort();
        drawn.dedup();
        if let CohortRule::Poisson { rate, .. } = self.rule {
            drawn.retain(|_| is_drawn(rate, rng.next_u64()));
        }
        if drawn.len() > self.size() as usize || !matches!(self.rule, CohortRule::Poisson { .. }) {
            drawn.shuffle(rng);
            drawn.truncate(self.size() as usize);
            drawn.sort();
        }
        Some(drawn)
    }
}

/// Whether a uniform word falls below `rate`: with a probability of `rate` rounded down to a multiple of 2^-64.
fn is_drawn(rate: f64, word: u64) -> bool {
    // Exact: a product with a power of two, and a word compared as the integer that it is.
    u128::from(word) < (rate * 18_446_744_073_709_551_616.0) as u128
}

impl CohortRule {
    fn validate(&self) -> Result<(), String> {
        let in_bounds = |what: &str, clients: u32| {
            if clients == 0 || clients > MAX_COHORT {
                Err(format!("{what} must be 1 to {MAX_COHORT}, not {clients}"))
            } else {
                Ok(())
            }
        };
        let least = |min: u32, most: u32, what: &str| {
            if min == 0 || min > most {
                Err(format!("min_clients must be 1 to the {what} ({most}), not {min}"))
            } else {
                Ok(())
            }
        };
        match *self {
            Self::All { size, min_clients } | Self::Uniform { size, min_clients } => {
                in_bounds("cohort size", size)?;
                least(min_clients, size, "cohort's size")
            }
            Self::Poisson { rate, population, cap, min_clients } => {
                if !(rate > 0.0 && rate <= 1.0) {
                    return Err(format!("rate must be above 0 and at most 1, not {rate}"));
                }
                if population == 0 {
                    return Err("population must be at least 1, not 0".into());
                }
                in_bounds("cap", cap)?;
                least(min_clients, population, "population")
            }
            Self::Buffered(b) => {
                in_bounds("concurrency", b.concurrency)?;
                in_bounds("buffer", b.buffer)?;
                if b.max_staleness > MAX_ROUNDS {
                    return Err(format!("max_staleness must be 0 to {MAX_ROUNDS}, not {}", b.max_staleness));
                }
                Ok(())
            }
        }
    }
}

/// The word for a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Rule {
    All,
    Uniform,
    Poisson,
    Buffered,
}

/// The table as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCohort {
    rule: Rule,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rate: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    population: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cap: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    concurrency: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    buffer: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_staleness: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    staleness: Option<Decay>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    min_clients: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    participations: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    separation: Option<u32>,
}

const VALID: &str = "rule = \"all\" and rule = \"uniform\" take size and min_clients; rule = \"poisson\" takes rate, population, \
     cap and min_clients; rule = \"buffered\" takes concurrency, buffer, max_staleness and staleness (\"inverse-sqrt\" or \
     \"constant\"); each may have participations and separation, together";

impl TryFrom<RawCohort> for Cohort {
    type Error = String;

    fn try_from(raw: RawCohort) -> Result<Self, String> {
        let refuse = |problem: String| format!("cohort: {problem}; {VALID}");
        let needed = |key: &str, value: Option<u32>| value.ok_or_else(|| refuse(format!("{key} is missing")));
        let given = [
            ("size", raw.size.is_some(), [Rule::All, Rule::Uniform].as_slice()),
            ("rate", raw.rate.is_some(), &[Rule::Poisson]),
            ("population", raw.population.is_some(), &[Rule::Poisson]),
            ("cap", raw.cap.is_some(), &[Rule::Poisson]),
            ("min_clients", raw.min_clients.is_some(), &[Rule::All, Rule::Uniform, Rule::Poisson]),
            ("concurrency", raw.concurrency.is_some(), &[Rule::Buffered]),
            ("buffer", raw.buffer.is_some(), &[Rule::Buffered]),
            ("max_staleness", raw.max_staleness.is_some(), &[Rule::Buffered]),
            ("staleness", raw.staleness.is_some(), &[Rule::Buffered]),
        ];
        let stray = given.iter().find(|(_, given, rules)| *given && !rules.contains(&raw.rule));
        if let Some((key, ..)) = stray {
            return Err(refuse(format!("{key} means nothing with this rule")));
        }
        let min_clients = || needed("min_clients", raw.min_clients);
        let rule = match raw.rule {
            Rule::All => CohortRule::All { size: needed("size", raw.size)?, min_clients: min_clients()? },
            Rule::Uniform => {
                CohortRule::Uniform { size: needed("size", raw.size)?, min_clients: min_clients()? }
            }
            Rule::Poisson => CohortRule::Poisson {
                rate: raw.rate.ok_or_else(|| refuse("rate is missing".into()))?,
                population: needed("population", raw.population)?,
                cap: needed("cap", raw.cap)?,
                min_clients: min_clients()?,
            },
            Rule::Buffered => CohortRule::Buffered(Buffered {
                concurrency: needed("concurrency", raw.concurrency)?,
                buffer: needed("buffer", raw.buffer)?,
                max_staleness: needed("max_staleness", raw.max_staleness)?,
                decay: raw.staleness.unwrap_or_default(),
            }),
        };
        let participation = match (raw.participations, raw.separation) {
            (None, None) => None,
            (Some(limit), Some(separation)) => {
                Some(Participation::new(limit, separation).map_err(|e| refuse(e.to_string()))?)
            }
            _ => return Err(refuse("participations needs separation, and the other way round".into())),
        };
        Ok(Self { rule, participation })
    }
}

impl From<Cohort> for RawCohort {
    fn from(cohort: Cohort) -> Self {
        let raw = Self {
            rule: Rule::All,
            size: None,
            rate: None,
            population: None,
            cap: None,
            concurrency: None,
            buffer: None,
            max_staleness: None,
            staleness: None,
            min_clients: Some(cohort.min_clients()),
            participations: cohort.participation.map(Participation::limit),
            separation: cohort.participation.map(Participation::separation),
        };
        match cohort.rule {
            CohortRule::All { size, .. } => Self { size: Some(size), ..raw },
            CohortRule::Uniform { size, .. } => Self { rule: Rule::Uniform, size: Some(size), ..raw },
            CohortRule::Poisson { rate, population, cap, .. } => Self {
                rule: Rule::Poisson,
                rate: Some(rate),
                population: Some(population),
                cap: Some(cap),
                ..raw
            },
            CohortRule::Buffered(b) => Self {
                rule: Rule::Buffered,
                concurrency: Some(b.concurrency),
                buffer: Some(b.buffer),
                max_staleness: Some(b.max_staleness),
                staleness: Some(b.decay),
                min_clients: None,
                ..raw
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    fn clients(n: usize) -> Vec<ClientId> {
        (0..n).map(|i| ClientId::new(format!("c{i:02}")).unwrap()).collect()
    }

    fn number(client: &ClientId) -> usize {
        client.as_str()[1..].parse().unwrap()
    }

    fn parse(text: &str) -> Result<Cohort, String> {
        toml::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn draws_are_bounded_and_uniform() {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(1);
        let rule = Cohort::new(CohortRule::Uniform { size: 3, min_clients: 2 });
        assert_eq!(rule.draw(&clients(1), &mut rng), None);
        let mut hits = [0u32; 10];
        for _ in 0..10_000 {
            let drawn = rule.draw(&clients(10), &mut rng).unwrap();
            assert_eq!(drawn.len(), 3);
            drawn.iter().for_each(|c| hits[number(c)] += 1);
        }
        // Each of 10 clients is in 3 of 10 draws: 3000 ± 6 standard deviations (46 each).
        assert!(hits.iter().all(|&h| (2700..3300).contains(&h)), "{hits:?}");
    }

    #[test]
    fn poisson_draws_are_independent_up_to_the_cap() {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(2);
        let rule = |cap| Cohort::new(CohortRule::Poisson { rate: 0.3, population: 10, cap, min_clients: 5 });
        assert_eq!(rule(10).draw(&clients(4), &mut rng), None);
        let (mut hits, mut pairs, mut sizes) = ([0u32; 10], 0u32, [0u32; 11]);
        for _ in 0..20_000 {
            let drawn = rule(10).draw(&clients(10), &mut rng).unwrap();
            assert!(drawn.is_sorted());
            sizes[drawn.len()] += 1;
            drawn.iter().for_each(|c| hits[number(c)] += 1);
            pairs += u32::from(drawn.iter().filter(|c| number(c) < 2).count() == 2);
        }
        // 6000 ± 6 standard deviations (65); two given clients together: 1800 ± 6 (40); nobody: 0.7^10 of 20000, 565 ± 6 (23).
        assert!(hits.iter().all(|&h| (5610..6390).contains(&h)), "{hits:?}");
        assert!((1560..2040).contains(&pairs), "{pairs}");
        assert!((425..705).contains(&sizes[0]), "{sizes:?}");
        let mut hits = [0u32; 10];
        for _ in 0..20_000 {
            let drawn = rule(2).draw(&clients(10), &mut rng).unwrap();
            assert!(drawn.len() <= 2);
            drawn.iter().for_each(|c| hits[number(c)] += 1);
        }
        let (least, most) = (hits.iter().min().unwrap(), hits.iter().max().unwrap());
        assert!(most - least < 600, "the cap favours nobody: {hits:?}");
        assert!(is_drawn(1.0, u64::MAX) && !is_drawn(0.5, 1 << 63) && is_drawn(0.5, (1 << 63) - 1));
    }

    #[test]
    fn a_table_is_read_and_written_back() {
        for text in [
            "rule = \"all\"\nsize = 4\nmin_clients = 2\n",
            "rule = \"uniform\"\nsize = 4\nmin_clients = 2\nparticipations = 3\nseparation = 10\n",
            "rule = \"poisson\"\nrate = 0.1\npopulation = 1000\ncap = 200\nmin_clients = 500\n",
            "rule = \"buffered\"\nconcurrency = 20\nbuffer = 10\nmax_staleness = 4\nstaleness = \"inverse-sqrt\"\n",
            "rule = \"buffered\"\nconcurrency = 2\nbuffer = 10\nmax_staleness = 0\nstaleness = \"constant\"\n",
        ] {
            let cohort = parse(text).unwrap();
            assert!(cohort.validate().is_ok());
            assert_eq!(toml::to_string(&cohort).unwrap(), text);
        }
        let poisson =
            parse("rule = \"poisson\"\nrate = 0.1\npopulation = 1000\ncap = 200\nmin_clients = 500").unwrap();
        assert_eq!((poisson.denominator(), poisson.size(), poisson.whole()), (100.0, 200, 1000));
        assert_eq!((poisson.min_clients(), poisson.min_updates()), (500, 0));
    }

    #[test]
    fn keys_that_do_not_go_together_are_refused_with_those_that_do() {
        for (text, says) in [
            ("rule = \"all\"\nmin_clients = 2", "size is missing"),
            ("rule = \"all\"\nsize = 2", "min_clients is missing"),
            ("rule = \"all\"\nsize = 2\nmin_clients = 2\nrate = 0.1", "rate means nothing"),
            (
                "rule = \"poisson\"\nrate = 0.1\npopulation = 9\ncap = 2\nmin_clients = 2\nsize = 3",
                "size means nothing",
            ),
            ("rule = \"poisson\"\npopulation = 9\ncap = 2\nmin_clients = 2", "rate is missing"),
            ("rule = \"poisson\"\nrate = 0.1\npopulation = 9\nmin_clients = 2", "cap is missing"),
            ("rule = \"buffered\"\nconcurrency = 2\nbuffer = 2", "max_staleness is missing"),
            (
                "rule = \"buffered\"\nconcurrency = 2\nbuffer = 2\nmax_staleness = 1\nmin_clients = 2",
                "min_clients means",
            ),
            ("rule = \"uniform\"\nsize = 2\nmin_clients = 2\nbuffer = 2", "buffer means nothing"),
            ("rule = \"all\"\nsize = 2\nmin_clients = 2\nseparation = 2", "participations needs separation"),
            ("rule = \"all\"\nsize = 2\nmin_clients = 2\nparticipations = 0\nseparation = 2", "at least 1"),
        ] {
            let e = parse(text).unwrap_err();
            assert!(e.contains(says) && e.contains("rule = \"poisson\" takes"), "{text}: {e}");
        }
    }

    #[test]
    fn impossible_rules_are_refused() {
        let check = |rule| Cohort::new(rule).validate();
        assert!(check(CohortRule::All { size: 0, min_clients: 0 }).is_err());
        assert!(check(CohortRule::All { size: 2, min_clients: 3 }).is_err());
        assert!(check(CohortRule::Uniform { size: 2, min_clients: 0 }).is_err());
        assert!(check(CohortRule::Uniform { size: 2, min_clients: 2 }).is_ok());
        let poisson = |rate, population, cap, min_clients| {
            check(CohortRule::Poisson { rate, population, cap, min_clients })
        };
        assert!(poisson(0.1, 10, 5, 2).is_ok());
        assert!(poisson(0.0, 10, 5, 2).is_err() && poisson(1.1, 10, 5, 2).is_err());
        assert!(poisson(f64::NAN, 10, 5, 2).is_err());
        assert!(poisson(0.1, 0, 5, 2).is_err() && poisson(0.1, 10, 0, 2).is_err());
        assert!(poisson(0.1, 10, 5, 11).is_err() && poisson(0.1, 10, 5, 0).is_err());
        let buffered = |concurrency, buffer, max_staleness| {
            let decay = Decay::InverseSqrt;
            check(CohortRule::Buffered(Buffered { concurrency, buffer, max_staleness, decay }))
        };
        assert!(buffered(1, 10, 0).is_ok() && buffered(10, 1, MAX_ROUNDS).is_ok());
        assert!(buffered(0, 10, 0).is_err() && buffered(1, 0, 0).is_err());
        assert!(buffered(1, MAX_COHORT + 1, 0).is_err() && buffered(1, 1, MAX_ROUNDS + 1).is_err());
    }

    #[test]
    fn free_places_are_drawn_fairly() {
        let mut rng = rand_chacha::ChaCha20Rng::seed_from_u64(3);
        let rule = Buffered { concurrency: 9, buffer: 2, max_staleness: 1, decay: Decay::InverseSqrt };
        let mut hits = [0u32; 10];
        for _ in 0..10_000 {
            let asked = rule.refill(clients(10), 2, &mut rng);
            assert!(asked.len() == 2 && asked.is_sorted());
            asked.iter().for_each(|c| hits[number(c)] += 1);
        }
        // 2000 ± 6 standard deviations (40 each).
        assert!(hits.iter().all(|&h| (1760..2240).contains(&h)), "{hits:?}");
        assert_eq!(rule.refill(clients(3), 5, &mut rng), clients(3));
        assert_eq!(rule.refill(clients(3), 0, &mut rng), []);
    }
}
