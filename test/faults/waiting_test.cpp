// Forks, signal handlers, report handlers and upstreams that come back to a resource while it is at work.

#include "support/each_resource.hpp"
#include "support/run.hpp"

#include <gtest/gtest.h>

#include <string>
#include <tuple>

namespace {

using order_and_subject = std::tuple<const char*, const char*>;
class fork_handlers : public testing::TestWithParam<order_and_subject> {};

TEST_P(fork_handlers, may_use_resources) {
    const faults::outcome o =
        faults::run("fork_handlers_use_resources", {std::get<0>(GetParam()), std::get<1>(GetParam())});
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.status, 0) << o.out << o.err << " signal " << o.signal;
}

INSTANTIATE_TEST_SUITE_P(registered, fork_handlers,
                         testing::Combine(testing::Values("first", "late"), testing::ValuesIn(faults::subjects)),
                         [](const auto& each) {
                             return std::string(std::get<0>(each.param)) + "_" + std::get<1>(each.param);
                         });

class signal_handler : public testing::TestWithParam<const char*> {};

TEST_P(signal_handler, gets_statistics_of_what_it_interrupts) {
    const faults::outcome o = faults::run("statistics_in_a_signal_handler", {GetParam()});
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.status, 0) << o.out << o.err << " signal " << o.signal;
}

INSTANTIATE_TEST_SUITE_P(asking, signal_handler, testing::ValuesIn(faults::subjects),
                         [](const auto& each) { return std::string(each.param); });

// What it breaks on the way, where no lock is met, is the program's fault; but it does not wait for ever. That it is
// told is for locks_test: whether a signal comes in the middle of a change is chance.
TEST(signal_handler_that_allocates, does_not_wait_for_what_it_interrupts) {
    for (const char* const name : {"general_purpose", "thorough", "end", "page"}) {
        EXPECT_FALSE(faults::run("resource_used_by_its_own_signal_handler", {name}).hung) << name;
    }
}

TEST(handler_or_upstream, may_wait_for_a_thread_that_uses_the_resource) {
    const faults::outcome o = faults::run("handler_waits_for_another_thread");
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.status, 0) << o.out << o.err << " signal " << o.signal;
}

}  // namespace
