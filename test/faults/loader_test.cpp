// Reports while another thread holds the loader's lock, or held it when the process forked.

#include "support/run.hpp"

#include <gtest/gtest.h>

namespace {

class report_while_a_library_loads : public testing::TestWithParam<const char*> {};

TEST_P(report_while_a_library_loads, gets_out) {
    const faults::outcome o =
        faults::run("report_while_a_library_loads", {faults::path_of("works_while_it_loads.so"), GetParam()});
    EXPECT_FALSE(o.hung) << o.err;
    const bool fault = std::string(GetParam()) == "fault";
    EXPECT_TRUE(o.says(fault ? "fault" : "size_mismatch")) << o.err;
    EXPECT_EQ(o.signal, fault ? SIGSEGV : SIGABRT) << o.err;
    EXPECT_TRUE(o.says("works_while_it_loads.cpp")) << o.err;
}

INSTANTIATE_TEST_SUITE_P(as, report_while_a_library_loads, testing::Values("text", "json", "fault"),
                         [](const auto& each) { return std::string(each.param); });

TEST(child_of_a_fork_while_others_load, reports) {
    const faults::outcome o = faults::run("child_reports_while_others_load", {faults::path_of("small.so")}, 60);
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.status, 0) << o.out << o.err << " signal " << o.signal;
}

}  // namespace
