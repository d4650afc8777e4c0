// How reports get out: whatever state their descriptor is in, they are neither lost nor written where they do not
// belong, and the program does not die or hang of it.

#include "support/run.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <sstream>
#include <string>
#include <vector>

namespace {

using nlohmann::json;

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) {
        lines.push_back(line);
    }
    return lines;
}

TEST(output, waits_for_a_reader_that_is_slow) {
    const faults::outcome o = faults::run("non_blocking_stderr_is_full");
    EXPECT_EQ(o.status, 0);
    EXPECT_TRUE(o.prints("double_free")) << o.out;
    EXPECT_TRUE(o.prints("hint:")) << o.out;
}

TEST(output, does_not_wait_for_ever) {
    const faults::outcome o = faults::run("non_blocking_stderr_is_full", {"unread"});
    EXPECT_FALSE(o.hung);
    EXPECT_EQ(o.out, "10 s\n");  // once, not for each report
}

TEST(output, outlives_a_reader) {
    const faults::outcome o = faults::run("log_takes_no_more", {"pipe"});
    EXPECT_EQ(o.out, "alive, no signal waits\n") << o.signal;
    EXPECT_TRUE(o.says("\"kind\":\"double_free\"")) << o.err;
}

TEST(output, outlives_a_limit_of_file_size) {
    const faults::outcome o = faults::run("log_takes_no_more", {"limit"});
    EXPECT_EQ(o.out, "alive, no signal waits\n") << o.signal;
    EXPECT_TRUE(o.says("\"kind\":\"double_free\"")) << o.err;
}

TEST(output, leaves_a_signal_of_the_programs) {
    const faults::outcome o = faults::run("log_takes_no_more", {"pending"});
    EXPECT_EQ(o.out, "alive, the signal waits\n") << o.signal;
}

TEST(output, goes_on_with_a_line_of_its_own_after_one_that_was_cut) {
    const faults::outcome o = faults::run("log_is_full_for_a_while");
    const std::vector<std::string> lines = lines_of(o.out);
    ASSERT_EQ(lines.size(), 3u) << o.out;
    EXPECT_EQ(lines[0].size(), 100u);
    EXPECT_FALSE(json::accept(lines[0]));
    EXPECT_TRUE(json::accept(lines[1])) << lines[1];
    EXPECT_TRUE(json::accept(lines[2])) << lines[2];
    // What the log refused went to standard error, whole.
    const std::vector<std::string> refused = lines_of(o.err);
    ASSERT_EQ(refused.size(), 2u) << o.err;
    EXPECT_TRUE(json::accept(refused[0])) << refused[0];
    EXPECT_TRUE(json::accept(refused[1])) << refused[1];
}

TEST(output, goes_into_no_file_that_has_the_number_of_standard_error) {
    EXPECT_EQ(faults::run("descriptor_used_again", {"stderr"}).out, "data\n");
    // Closed from the start.
    EXPECT_EQ(faults::run("descriptor_used_again", {"stderr"}, 30, [] { ::close(2); }).out, "data\n");
}

TEST(output, goes_into_no_file_that_has_the_number_of_a_log) {
    const faults::outcome o = faults::run("descriptor_used_again", {"log"});
    EXPECT_EQ(o.out, "data\n");
    EXPECT_TRUE(o.says("\"kind\":\"double_free\"")) << o.err;
}

TEST(output, follows_standard_error_where_it_was_redirected) {
    EXPECT_TRUE(faults::run("descriptor_used_again", {"redirected"}).prints("double_free"));
    EXPECT_TRUE(faults::run("descriptor_used_again", {"saved"}).prints("double_free"));
}

}  // namespace
