use model::*;
#[test]
fn probe() {
    let mut s = Scenario::new("calm");
    s.states_max = Some(100_000);
    let init = &stateright::Model::init_states(&s)[0];
    eprintln!("{:?}", init.store);
    eprintln!("{:?}", init.proxies[0]);
    let f = explore(&s);
    eprintln!("{f:?}");
    s.wishes = vec![(0, vec![1], policy::fence::Cause::Operator)];
    s.budget.questions = 2;
    let f = explore(&s);
    eprintln!("{f:?}");
    s.net.revocations = true;
    s.budget.crashes=1;
    s.hosts[0].1.watch = true;
    let f = explore(&s);
    eprintln!("{f:?}");
}
