// What a program must not notice: cancelled threads, errno, its own handler of SIGABRT, plug-ins that go.

#include "support/run.hpp"

#include <gtest/gtest.h>

namespace {

class cancelled_thread : public testing::TestWithParam<const char*> {};

TEST_P(cancelled_thread, ends_where_the_program_says) {
    const faults::outcome o = faults::run("cancelled_thread", {GetParam()});
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.status, 0) << o.out << o.err << " signal " << o.signal;
}

INSTANTIATE_TEST_SUITE_P(doing, cancelled_thread, testing::Values("use", "statistics", "crowd", "report"),
                         [](const auto& each) { return std::string(each.param); });

class kept_errno : public testing::TestWithParam<const char*> {};

TEST_P(kept_errno, is_the_programs_whatever_the_system_refuses) {
    const faults::outcome o = faults::run("errno_is_kept", {}, 60, [] {
        if (*GetParam() != '\0') {
            ::setenv("FAULTS_FAIL", GetParam(), 1);
            ::setenv("FAULTS_EVERY", "3", 1);
            ::setenv("LD_PRELOAD", faults::path_of("failing_calls.so").c_str(), 1);
        }
    });
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.status, 0) << o.out << o.err << " signal " << o.signal;
}

// A sanitizer's runtime must come first, and needs these calls itself.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
INSTANTIATE_TEST_SUITE_P(without, kept_errno, testing::Values(""), [](const auto&) { return std::string("nothing"); });
#else
INSTANTIATE_TEST_SUITE_P(without, kept_errno, testing::Values("", "guard", "mremap", "madvise", "munmap"),
                         [](const auto& each) { return std::string(*each.param != 0 ? each.param : "nothing"); });
#endif

class abort_handler : public testing::TestWithParam<const char*> {};

TEST_P(abort_handler, may_make_errors_of_its_own) {
    const faults::outcome o = faults::run("abort_handler_that_reports", {GetParam()});
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.signal, SIGABRT) << o.err;
    EXPECT_TRUE(o.prints("cleaned up"));
    EXPECT_LE(o.times("null_free:"), 3u) << o.err;
}

INSTANTIATE_TEST_SUITE_P(on, abort_handler, testing::Values("stack", "altstack"),
                         [](const auto& each) { return std::string(each.param); });

TEST(plugin_with_the_library_inside, leaves_nothing_behind_when_it_goes) {
    const faults::outcome o = faults::run("thread_outlives_plugin", {faults::path_of("with_library_inside.so")});
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.status, 0) << o.out << o.err << " signal " << o.signal;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    EXPECT_TRUE(o.prints("unloaded")) << o.out;
#endif
}

TEST(plugin_with_the_library_inside, may_come_and_go_for_ever) {
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    const faults::outcome o = faults::run("plugin_comes_and_goes", {faults::path_of("with_library_inside.so")});
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.status, 0) << o.out << o.err << " signal " << o.signal;
#endif
}

}  // namespace
