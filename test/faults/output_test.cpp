// How reports get out: whatever state their descriptor is in, they are neither lost nor written where they do not
// belong, and the program does not die or hang of it.

#include "os/thread.hpp"
#include "support/run.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <string_view>
#include <thread>
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

// What the text says up to the first trace.
std::string facts_of(const std::string& text, const std::string& kind) {
    const std::size_t from = text.find(kind);
    return from == std::string::npos ? std::string() : text.substr(from, text.find("  here:", from) - from);
}

// As after 65 535 threads.
template <class Work>
void in_thread(std::uint32_t number, Work work) {
    std::thread([&] {
        static_cast<void>(pmr_debug::os::this_thread());
        pmr_debug::os::detail::current_thread.number = number;
        work();
    }).join();
}

TEST(output, shows_no_number_for_a_thread_whose_number_was_not_kept) {
    pmr_debug::collecting_handler errors;
    pmr_debug::general_purpose_resource heap({.name = "heap", .handler = &errors});
    pmr_debug::tracking_resource exact({.name = "exact", .handler = &errors});
    void* p = nullptr;
    void* q = nullptr;
    in_thread(70'001, [&] {
        p = heap.allocate(64);
        q = exact.allocate(64);
    });
    in_thread(70'002, [&] {
        heap.deallocate(p, 64);
        exact.deallocate(q, 64);
    });
    heap.deallocate(p, 64);
    exact.deallocate(q, 64);
    ASSERT_EQ(errors.size(), 2u);

    const std::string text(errors[0].text);
    EXPECT_NE(text.find("allocated by a later one (65535 or above), freed by a later one (65535 or above)"),
              std::string::npos)
        << text;
    EXPECT_NE(text.find("allocated by a later thread (65535 or above):"), std::string::npos) << text;
    EXPECT_EQ(text.find("by 65535"), std::string::npos) << text;
    EXPECT_EQ(text.find("thread 65535"), std::string::npos) << text;
    const pmr_debug::block_info& block = errors[0].facts.block;
    EXPECT_EQ(block.alloc_thread, 0u);
    EXPECT_EQ(block.free_thread, 0u);
    EXPECT_TRUE(block.late_alloc_thread && block.late_free_thread);
    std::string line;
    pmr_debug::write_json(
        errors[0].facts,
        [](std::string_view piece, void* to) noexcept { static_cast<std::string*>(to)->append(piece); }, &line);
    EXPECT_EQ(json::parse(line).at("block").at("alloc_thread_at_least"), 65'535);
    EXPECT_EQ(json::parse(line).at("block").at("free_thread_at_least"), 65'535);

    // Others keep the whole number.
    EXPECT_EQ(errors[1].facts.block.alloc_thread, 70'001u);
    EXPECT_EQ(errors[1].facts.block.free_thread, 70'002u);
    EXPECT_FALSE(errors[1].facts.block.late_alloc_thread);
}

TEST(output, knows_a_thread_to_its_very_end) {
    EXPECT_EQ(faults::run("number_in_late_key_destructor").out, "same");
}

TEST(output, holds_nothing_that_a_terminal_obeys) {
    const faults::outcome o = faults::run("hostile_names");
    ASSERT_EQ(o.status, 0);
    for (const char c : o.out) {
        const auto byte = static_cast<unsigned char>(c);
        ASSERT_TRUE(byte == '\n' || (byte >= 0x20 && byte != 0x7f)) << "byte " << int{byte};
    }
    // No right-to-left override, no control character above ASCII, and what is no UTF-8 escaped.
    EXPECT_FALSE(o.prints("\xe2\x80\xae"));
    EXPECT_FALSE(o.prints("\xc2\x9b"));
    EXPECT_NO_THROW(static_cast<void>(json(o.out).dump())) << "not UTF-8";
    EXPECT_TRUE(o.prints("\\x1b[2J")) << o.out;
}

TEST(output, shows_that_a_name_was_cut) {
    const faults::outcome o = faults::run("hostile_names");
    EXPECT_FALSE(o.prints("behind"));
    EXPECT_TRUE(o.prints(R"(\xe2\x80\xaee…)")) << o.out;
    EXPECT_TRUE(o.prints('"' + std::string(60, 'L') + "…\"")) << o.out;
    EXPECT_FALSE(o.prints(std::string(61, 'L')));
    std::string umlauts = "\"x";
    for (int i = 0; i < 29; ++i) {
        umlauts += "ä";
    }
    EXPECT_TRUE(o.prints(umlauts + "…\"")) << o.out;
    std::size_t valid = 0;
    for (const std::string& line : lines_of(o.err)) {
        valid += json::accept(line) ? 1 : 0;
    }
    EXPECT_EQ(valid, 3u) << o.err;
}

TEST(output, prints_the_same_error_once_and_how_often_it_came_again) {
    const faults::outcome o = faults::run("same_error_many_times", {"text"});
    EXPECT_EQ(o.times("pmr_debug: size_mismatch: block"), 1u) << o.err;
    EXPECT_EQ(o.times("pmr_debug: size_mismatch: 9999 more times in \"heap\""), 1u) << o.err;
    EXPECT_EQ(o.times("pmr_debug: leak: 10 bytes"), 1u) << o.err;
    EXPECT_EQ(o.times("pmr_debug: leak: 2 more times in \"scope\", 20 bytes in 2 blocks"), 1u) << o.err;
    EXPECT_TRUE(o.says("here: (anonymous namespace)::mismatch")) << o.err;
}

TEST(output, closes_a_log_with_what_came_again) {
    const faults::outcome o = faults::run("same_error_many_times", {"json"});
    const std::vector<std::string> lines = lines_of(o.err);
    ASSERT_EQ(lines.size(), 3u) << o.err;
    EXPECT_EQ(json::parse(lines[0]).at("kind"), "size_mismatch");
    EXPECT_EQ(json::parse(lines[1]).at("kind"), "leak");
    const json last = json::parse(lines[2]);
    EXPECT_EQ(last.at("kind"), "repeated");
    EXPECT_EQ(last.at("headline"), "10001 reports more, equal to others in kind and call paths");
    std::size_t found = 0;
    for (const json& one : last.at("repeated")) {
        found += one.at("kind") == "size_mismatch" && one.at("times") == 9999 ? 1 : 0;
        found += one.at("kind") == "leak" && one.at("times") == 2 && one.at("leaked_bytes") == 20 ? 1 : 0;
    }
    EXPECT_EQ(found, 2u) << lines[2];
}

TEST(output, tells_at_exit_and_before_an_abort_what_came_again) {
    EXPECT_EQ(faults::run("same_error_many_times", {"default"}).times("9999 more times"), 1u);
    EXPECT_EQ(faults::run("same_error_many_times", {"shipped"}).times("4 more times"), 1u);
    const faults::outcome o = faults::run("same_error_many_times", {"abort"});
    EXPECT_EQ(o.signal, SIGABRT);
    EXPECT_EQ(o.times("leak: 4 more times"), 1u) << o.err;
}

TEST(output, hands_every_report_to_the_programs_own_handlers) {
    EXPECT_EQ(faults::run("same_error_many_times", {"own"}).out, "10000 10000");
}

TEST(output, of_a_child_is_complete) {
    const faults::outcome o = faults::run("same_error_many_times", {"fork"});
    EXPECT_EQ(o.times("pmr_debug: size_mismatch: block"), 2u) << o.err;
    EXPECT_EQ(o.times("4 more times"), 2u) << o.err;
}

TEST(output, says_how_a_resource_is_handed_over) {
    const faults::outcome o = faults::run("handed_from_thread_to_thread");
    EXPECT_EQ(o.signal, SIGABRT);
    EXPECT_TRUE(o.says("rebind_thread()")) << o.err;
    EXPECT_FALSE(o.says("thread 1,")) << "thread 1 is the main thread" << o.err;
    const faults::outcome handed = faults::run("handed_from_thread_to_thread", {"rebind"});
    EXPECT_EQ(handed.status, 0);
    EXPECT_EQ(handed.err, "");
}

TEST(output, of_what_is_harmless_is_a_hint) {
    const faults::outcome o = faults::run("null_deallocated_as_nothing");
    EXPECT_EQ(o.status, 0);
    // One for each resource, and one for the loop at the end.
    EXPECT_EQ(o.times("null_free: a null pointer was deallocated"), std::stoul(o.out) + 1) << o.err;
    EXPECT_EQ(o.times("harmless"), std::stoul(o.out) + 1) << o.err;
    EXPECT_EQ(o.times("2 more times"), 1u) << o.err;
    const faults::outcome error = faults::run("null_deallocated_as_nothing", {"bytes"});
    EXPECT_EQ(error.signal, SIGABRT);
    EXPECT_FALSE(error.says("harmless")) << error.err;
}

TEST(output, says_whose_end_it_is) {
    const faults::outcome order = faults::run("used_at_the_end", {"order"});
    EXPECT_NE(facts_of(order.err, "destroyed_resource:").find("at the program's exit"), std::string::npos) << order.err;
    EXPECT_TRUE(order.says("reverse order of their construction")) << order.err;

    const faults::outcome leak = faults::run("used_at_the_end", {"leak"});
    EXPECT_TRUE(
        leak.says("at the program's exit: static objects are destroyed; 1 other thread that used resources still "
                  "runs"))
        << leak.err;
    EXPECT_TRUE(leak.says("join them before main returns")) << leak.err;

    const faults::outcome detached = faults::run("used_at_the_end", {"detached"});
    EXPECT_TRUE(detached.says("the program exits and has destroyed the resource, but thread 2 goes on"))
        << detached.err;
    EXPECT_TRUE(detached.says("a thread goes on after main")) << detached.err;
    EXPECT_TRUE(detached.says("resource destroyed by thread 1:")) << detached.err;

    const faults::outcome thread = faults::run("used_at_the_end", {"thread"});
    EXPECT_TRUE(thread.says("as thread 2 ends: its thread_local objects are destroyed")) << thread.err;
    EXPECT_TRUE(thread.says("a thread_local object outlived the resource")) << thread.err;

    const faults::outcome joined = faults::run("used_at_the_end", {"joined"});
    EXPECT_TRUE(joined.says("resource destroyed by thread 2:")) << joined.err;
    EXPECT_TRUE(joined.says("another thread destroyed the resource")) << joined.err;
}

TEST(output, has_nothing_to_say_of_a_system_call_that_fails) {
    const faults::outcome o = faults::run("system_call_meets_a_guard");
    EXPECT_EQ(o.out, "read 4096, write -1 EFAULT");
    EXPECT_EQ(o.err, "");
}

std::string text_of(const pmr_debug::report& r) {
    std::string text;
    pmr_debug::write_text(
        r, {}, [](std::string_view piece, void* to) noexcept { static_cast<std::string*>(to)->append(piece); }, &text);
    return text;
}

TEST(output, of_a_fault_has_a_subject) {
    pmr_debug::report r;
    r.kind = pmr_debug::error_kind::fault;
    r.faulted = true;
    r.fault_cause = "a null pointer";
    r.access = pmr_debug::access_kind::read;
    EXPECT_EQ(text_of(r).rfind("pmr_debug: fault: 0x0 was read: a null pointer\n", 0), 0u) << text_of(r);
    r.access = pmr_debug::access_kind::unknown;
    r.fault_cause = "an address that cannot exist";
    EXPECT_EQ(text_of(r).rfind("pmr_debug: fault: an unknown address was accessed: an address that cannot exist\n", 0),
              0u)
        << text_of(r);
}

}  // namespace
