// Who receives reports, and the way there: shipped handlers, the default one, counting, aborting, nesting.

#include "os/environment.hpp"
#include "report/dispatch.hpp"
#include "report/owned_lock.hpp"
#include "support/mask.hpp"
#include "support/sample_reports.hpp"
#include "support/sanitizers.hpp"

#include <pmr_debug/collecting_handler.hpp>
#include <pmr_debug/report.hpp>

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>
#include <nlohmann/json.hpp>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <vector>

namespace {

std::atomic<std::size_t> heap_calls{0};

}  // namespace

#if !TEST_SANITIZED

// Counts what anything in this program asks the heap for. The C library's own functions under their second names.
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);

void* malloc(std::size_t bytes) {
    heap_calls.fetch_add(1, std::memory_order_relaxed);
    return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) {
    heap_calls.fetch_add(1, std::memory_order_relaxed);
    return __libc_calloc(count, bytes);
}
void* realloc(void* p, std::size_t bytes) {
    heap_calls.fetch_add(1, std::memory_order_relaxed);
    return __libc_realloc(p, bytes);
}
}

#endif

namespace {

using namespace pmr_debug;
using test_support::json_of;
using test_support::sample;
using test_support::text_of;
using enum pmr_debug::error_kind;

// What a descriptor receives, one message a write.
class messages {
public:
    messages() {
        if (::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends_) != 0) {
            std::abort();
        }
        const int room = 1 << 20;
        ::setsockopt(ends_[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    }
    messages(const messages&) = delete;
    messages& operator=(const messages&) = delete;
    ~messages() {
        ::close(ends_[0]);
        ::close(ends_[1]);
    }
    [[nodiscard]] int descriptor() const { return ends_[0]; }
    // The next message; empty if there is none.
    std::string next() {
        const ssize_t n = ::recv(ends_[1], buffer_.data(), buffer_.size(), MSG_DONTWAIT);
        return n <= 0 ? std::string() : std::string(buffer_.data(), static_cast<std::size_t>(n));
    }

private:
    int ends_[2]{};
    std::vector<char> buffer_ = std::vector<char>(1 << 20);
};

TEST(text_handler, writes_a_report_with_one_write) {
    messages out;
    text_handler handler({.descriptor = out.descriptor(), .colour = text_handler::options::colour_mode::never});
    report r = sample(leak);
    const std::vector<leak_group> groups(300, {.blocks = 1, .bytes = 1, .example_size = 1});
    r.leaks = groups;
    handler.handle(r);
    handler.handle(sample(double_free));
    EXPECT_EQ(out.next(), text_of(r));
    EXPECT_EQ(out.next(), text_of(sample(double_free)));
    EXPECT_EQ(out.next(), "");
}

TEST(text_handler, answers_as_its_options_say) {
    messages out;
    const auto answer = [&](error_kind kind, bool on_error, bool on_leak) {
        text_handler handler({.descriptor = out.descriptor(), .abort_on_error = on_error, .abort_on_leak = on_leak});
        return handler.handle(sample(kind));
    };
    EXPECT_EQ(answer(double_free, true, false), action::abort);
    EXPECT_EQ(answer(double_free, false, true), action::carry_on);
    EXPECT_EQ(answer(leak, true, false), action::carry_on);
    EXPECT_EQ(answer(live_at_destruction, true, false), action::carry_on);
    EXPECT_EQ(answer(leak, false, true), action::abort);
}

TEST(text_handler, colours_when_told_or_on_a_terminal) {
    using colour_mode = text_handler::options::colour_mode;
    messages out;
    const auto text = [&](colour_mode mode) {
        text_handler({.descriptor = out.descriptor(), .colour = mode}).handle(sample(leak));
        return out.next();
    };
    const report r = sample(leak);
    EXPECT_EQ(text(colour_mode::always), text_of(r, {.colour = true}));
    EXPECT_EQ(text(colour_mode::never), text_of(r));
    EXPECT_EQ(text(colour_mode::automatic), text_of(r));  // a socket is no terminal
}

// The first bytes that a pseudo-terminal receives under these settings; null: unset.
std::string on_terminal(const char* term, const char* no_colour) {
    const auto set = [](const char* name, const char* value) {
        return value != nullptr ? ::setenv(name, value, 1) : ::unsetenv(name);
    };
    const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || ::grantpt(master) != 0 || ::unlockpt(master) != 0) {
        return {};
    }
    const int terminal = ::open(::ptsname(master), O_RDWR | O_NOCTTY);
    if (terminal < 0) {
        ::close(master);
        return {};
    }
    set("TERM", term);
    set("NO_COLOR", no_colour);
    os::read_environment_again();
    text_handler({.descriptor = terminal}).handle(sample(cycle));
    char buffer[64];
    const ssize_t n = ::read(master, buffer, sizeof buffer);
    ::close(terminal);
    ::close(master);
    return n <= 0 ? std::string() : std::string(buffer, static_cast<std::size_t>(n));
}

TEST(text_handler, respects_the_terminals_wishes) {
    const std::string coloured = on_terminal("xterm", nullptr);
    if (coloured.empty()) {
        GTEST_SKIP() << "no pseudo-terminals here";
    }
    EXPECT_TRUE(coloured.starts_with("\x1b["));
    EXPECT_TRUE(on_terminal("xterm", "").starts_with("\x1b["));
    EXPECT_TRUE(on_terminal("xterm", "1").starts_with("pmr_debug: "));
    EXPECT_TRUE(on_terminal("dumb", nullptr).starts_with("pmr_debug: "));
    EXPECT_TRUE(on_terminal(nullptr, nullptr).starts_with("pmr_debug: "));
}

TEST(text_handler, turns_to_standard_error_if_its_descriptor_refuses) {
    ::testing::internal::CaptureStderr();
    text_handler({.descriptor = -1}).handle(sample(double_free));
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), text_of(sample(double_free)));
}

TEST(text_handler, never_mixes_reports_of_two_threads_however_long) {
    std::FILE* const file = std::tmpfile();
    ASSERT_NE(file, nullptr);
    constexpr std::size_t group_count = 20'000;  // about a megabyte, several buffers full
    constexpr int rounds = 3;
    const auto print = [&](std::size_t size) {
        const std::vector<leak_group> groups(group_count, {.blocks = 1, .bytes = size, .example_size = size});
        report r = sample(leak);
        r.leaks = groups;
        text_handler handler({.descriptor = ::fileno(file), .max_leak_groups = group_count});
        for (int i = 0; i < rounds; ++i) {
            handler.handle(r);
        }
    };
    std::thread other(print, 7777);
    print(3333);
    other.join();
    std::rewind(file);
    char line[512];
    std::string size;
    std::size_t lines = 0;
    std::size_t reports = 0;
    while (std::fgets(line, sizeof line, file) != nullptr) {
        const std::string_view text = line;
        if (text.starts_with("pmr_debug: ")) {
            EXPECT_EQ(lines, reports * group_count);  // the one before was whole
            ++reports;
            size.clear();
        } else if (text.starts_with("  leak ")) {
            ++lines;
            const std::string this_size(text.substr(text.find(": ") + 2, 4));
            ASSERT_TRUE(size.empty() || size == this_size) << line;
            size = this_size;
        }
    }
    EXPECT_EQ(reports, 2U * rounds);
    EXPECT_EQ(lines, 2U * rounds * group_count);
    std::fclose(file);
}

TEST(json_handler, writes_a_line_with_one_write) {
    messages out;
    json_handler handler(out.descriptor());
    EXPECT_EQ(handler.handle(sample(double_free)), action::carry_on);
    const std::string line = out.next();
    EXPECT_EQ(line, json_of(sample(double_free)));
    EXPECT_EQ(nlohmann::json::parse(line).at("kind"), "double_free");
    EXPECT_EQ(out.next(), "");
    json_handler strict(out.descriptor(), action::abort);
    EXPECT_EQ(strict.handle(sample(double_free)), action::abort);
    EXPECT_EQ(strict.handle(sample(leak)), action::carry_on);
}

TEST(handlers, take_nothing_from_the_heap) {
    messages out;
    text_handler text({.descriptor = out.descriptor()});
    json_handler json(out.descriptor());
    detail::error_tally tally;
    report r = sample(double_free);
    const std::size_t before = heap_calls.load();
    collecting_handler kept;
    tally.handler = &kept;
    detail::raise(tally, r);
    text.handle(r);
    json.handle(r);
    kept.clear();
    EXPECT_EQ(heap_calls.load(), before);
    if (TEST_SANITIZED) {
        GTEST_SKIP() << "the heap is the sanitizer's";
    }
    void* volatile p = ::malloc(1);
    ::free(p);
    EXPECT_GT(heap_calls.load(), before);  // it does count
}

TEST(owned_lock, knows_its_holder_and_does_not_wait_for_ever) {
    using outcome = detail::owned_lock::outcome;
    detail::owned_lock lock;
    ASSERT_EQ(lock.lock(), outcome::locked);
    EXPECT_EQ(lock.lock(), outcome::mine_already);
    outcome others = outcome::locked;
    std::thread([&] { others = lock.lock(20); }).join();
    EXPECT_EQ(others, outcome::gave_up);
    lock.unlock();
    std::thread([&] {
        others = lock.lock(20);
        lock.unlock();
    }).join();
    EXPECT_EQ(others, outcome::locked);
}

TEST(default_handler, can_be_replaced_and_restored) {
    report_handler& shipped = default_report_handler();
    collecting_handler mine;
    EXPECT_EQ(&set_default_report_handler(&mine), &shipped);
    EXPECT_EQ(&default_report_handler(), &mine);
    detail::error_tally tally;
    report r = sample(double_free);
    detail::raise(tally, r);
    EXPECT_EQ(mine.count(double_free), 1U);
    EXPECT_EQ(&set_default_report_handler(nullptr), &mine);
    EXPECT_EQ(&default_report_handler(), &shipped);
}

TEST(default_handler_death_test, aborts_on_errors) {
    EXPECT_EXIT(
        {
            detail::error_tally tally;
            report r = sample(double_free);
            detail::raise(tally, r);
        },
        ::testing::KilledBySignal(SIGABRT), "pmr_debug: double_free: 64-byte block 0x7f0000001000 was freed twice");
}

TEST(default_handler_death_test, prints_leaks_and_goes_on) {
    EXPECT_EXIT(
        {
            detail::error_tally tally;
            report r = sample(leak);
            detail::raise(tally, r);
            std::_Exit(7);
        },
        ::testing::ExitedWithCode(7), "pmr_debug: leak: 20064 bytes");
}

TEST(null_upstream_death_test, is_printed_before_the_end) {
    EXPECT_EXIT(detail::null_upstream("tracking_resource", "scope", trace_id::none), ::testing::KilledBySignal(SIGABRT),
                "pmr_debug: null_upstream: \"scope\" was constructed with a null upstream");
    // Even if the handler would rather go on.
    EXPECT_EXIT(
        {
            collecting_handler mine;
            set_default_report_handler(&mine);
            detail::null_upstream("tracking_resource", "scope", trace_id::none);
        },
        ::testing::KilledBySignal(SIGABRT), "");
}

TEST(raise, counts_and_fills_in_where_and_who) {
    collecting_handler handler;
    detail::error_tally tally;
    tally.handler = &handler;
    EXPECT_TRUE(detail::ok(tally));
    report r = sample(double_free);
    r.thread = 0;
    detail::raise(tally, r);
    detail::raise(tally, r);
    report other = sample(leak);
    const trace_id given = capture_trace(4);
    other.here = given;
    detail::raise(tally, other);
    EXPECT_FALSE(detail::ok(tally));
    EXPECT_EQ(detail::snapshot(tally)[double_free], 2U);
    EXPECT_EQ(detail::snapshot(tally)[leak], 1U);
    EXPECT_EQ(detail::snapshot(tally).total(), 3U);
    EXPECT_NE(handler[0].facts.here, trace_id::none);
    EXPECT_EQ(handler[2].facts.here, given);
    EXPECT_NE(handler[0].facts.thread, 0U);
    std::thread([&] { detail::raise(tally, r); }).join();
    EXPECT_NE(handler[3].facts.thread, handler[0].facts.thread);
}

TEST(raise, works_in_zeroed_memory) {
    alignas(detail::error_tally) unsigned char memory[sizeof(detail::error_tally)]{};
    const auto& zeroed = *reinterpret_cast<const detail::error_tally*>(memory);
    EXPECT_TRUE(detail::ok(zeroed));
    EXPECT_EQ(zeroed.handler.load(), nullptr);
    EXPECT_TRUE(std::is_trivially_destructible_v<detail::error_tally>);
}

// Raises from within itself, always.
class clumsy_handler final : public report_handler {
public:
    explicit clumsy_handler(detail::error_tally& tally) : tally_(tally) {}
    action handle(const report&) noexcept override {
        ++calls;
        report again = sample(invalid_free);
        detail::raise(tally_, again);
        return action::carry_on;
    }
    int calls = 0;

private:
    detail::error_tally& tally_;
};

TEST(raise, ends_in_one_raw_line_if_a_handler_keeps_raising) {
    detail::error_tally tally;
    clumsy_handler handler(tally);
    tally.handler = &handler;
    ::testing::internal::CaptureStderr();
    report r = sample(double_free);
    detail::raise(tally, r);
    EXPECT_EQ(test_support::mask(::testing::internal::GetCapturedStderr()),
              "pmr_debug: while reporting: invalid_free: 0x* is no block of any pmr_debug resource\n");
    EXPECT_EQ(handler.calls, 3);
    EXPECT_EQ(detail::snapshot(tally).total(), 4U);
    ::testing::internal::CaptureStderr();
    detail::raise(tally, r);  // the guard is gone again
    EXPECT_EQ(handler.calls, 6);
    ::testing::internal::GetCapturedStderr();
}

// Takes its time.
class slow_handler final : public report_handler {
public:
    action handle(const report&) noexcept override {
        started = true;
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        constexpr std::string_view text = "the slow report is complete\n";
        if (::write(2, text.data(), text.size()) < 0) {
            std::_Exit(3);
        }
        return action::carry_on;
    }
    std::atomic<bool> started{false};
};

TEST(raise_death_test, an_abort_lets_another_threads_report_finish) {
    EXPECT_EXIT(
        {
            slow_handler slow;
            detail::error_tally slow_tally;
            slow_tally.handler = &slow;
            std::thread other([&] {
                report r = sample(leak);
                detail::raise(slow_tally, r);
            });
            while (!slow.started) {
                std::this_thread::yield();
            }
            collecting_handler strict(action::abort);
            detail::error_tally tally;
            tally.handler = &strict;
            report r = sample(double_free);
            detail::raise(tally, r);
            other.join();
        },
        ::testing::KilledBySignal(SIGABRT), "the slow report is complete");
}

TEST(collecting_handler, keeps_facts_text_groups_and_hint) {
    collecting_handler handler;
    EXPECT_EQ(handler.count(), 0U);
    EXPECT_EQ(handler.size(), 0U);
    {
        std::string hint = "gone soon, and longer than any small string";
        std::vector<leak_group> groups(100, {.blocks = 2, .bytes = 64, .example_size = 32});
        report r = sample(leak);
        r.leaks = groups;
        r.hint = hint;
        EXPECT_EQ(handler.handle(r), action::carry_on);
        std::fill(hint.begin(), hint.end(), '!');
        groups.assign(100, {});
    }
    handler.handle(sample(double_free));
    EXPECT_EQ(handler.count(), 2U);
    EXPECT_EQ(handler.count(leak), 1U);
    EXPECT_EQ(handler.count(overrun), 0U);
    ASSERT_EQ(handler.size(), 2U);
    const collecting_handler::entry& first = handler[0];
    EXPECT_EQ(first.facts.kind, leak);
    EXPECT_EQ(first.facts.hint, "gone soon, and longer than any small string");
    ASSERT_EQ(first.facts.leaks.size(), 100U);
    EXPECT_EQ(first.facts.leaks[99].bytes, 64U);
    EXPECT_EQ(first.text, text_of(first.facts));
    EXPECT_EQ(handler.back().facts.kind, double_free);
    EXPECT_EQ(handler.back().facts.block.serial, 12U);
    EXPECT_EQ(handler.back().text, text_of(sample(double_free)));
    handler.clear();
    EXPECT_EQ(handler.count(), 0U);
    EXPECT_EQ(handler.size(), 0U);
    handler.handle(sample(overrun));
    EXPECT_EQ(handler.back().facts.kind, overrun);
    EXPECT_EQ(collecting_handler(action::abort).handle(sample(leak)), action::abort);
}

TEST(collecting_handler, counts_on_when_it_is_full) {
    collecting_handler handler;
    for (std::size_t i = 0; i < collecting_handler::capacity + 10; ++i) {
        report r = sample(null_free);
        r.given_size = i;
        handler.handle(r);
    }
    EXPECT_EQ(handler.count(), collecting_handler::capacity + 10);
    EXPECT_EQ(handler.size(), collecting_handler::capacity);
    EXPECT_EQ(handler.back().facts.given_size, collecting_handler::capacity - 1);
}

TEST(collecting_handler, takes_reports_from_many_threads) {
    collecting_handler handler;
    const auto work = [&] {
        for (int i = 0; i < 100; ++i) {
            handler.handle(sample(double_free));
            if (const std::size_t size = handler.size(); size != 0) {
                EXPECT_EQ(handler[size - 1].facts.kind, double_free);
            }
        }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
        threads.emplace_back(work);
    }
    for (std::thread& t : threads) {
        t.join();
    }
    EXPECT_EQ(handler.count(double_free), 400U);
    EXPECT_EQ(handler.size(), 400U);
    for (std::size_t i = 0; i < handler.size(); ++i) {
        EXPECT_EQ(handler[i].text, handler[0].text);
    }
}

void exercise() {
    detail::error_tally tally;
    report r = sample(double_free);
    detail::raise(tally, r);
}

TEST(documentation, handlers_example) {
    ::testing::internal::CaptureStdout();
    // docs/reports.md, "Handlers"
    pmr_debug::collecting_handler errors;
    pmr_debug::report_handler& before = pmr_debug::set_default_report_handler(&errors);
    exercise();
    pmr_debug::set_default_report_handler(&before);
    for (std::size_t i = 0; i < errors.size(); ++i) {
        std::cout << errors[i].text;
    }
    EXPECT_TRUE(::testing::internal::GetCapturedStdout().starts_with("pmr_debug: double_free: "));
}

TEST(interface, never_throws) {
    static_assert(noexcept(write_text(report{}, text_options{}, test_support::append, nullptr)));
    static_assert(noexcept(write_json(report{}, test_support::append, nullptr)));
    static_assert(noexcept(std::declval<report_handler&>().handle(report{})));
    static_assert(noexcept(default_report_handler())&& noexcept(set_default_report_handler(nullptr)));
    static_assert(noexcept(detail::raise(std::declval<detail::error_tally&>(), std::declval<report&>())));
    static_assert(std::is_nothrow_constructible_v<text_handler, text_handler::options>);
    static_assert(std::is_nothrow_constructible_v<json_handler, int>);
    static_assert(std::is_nothrow_constructible_v<collecting_handler, action>);
}

}  // namespace
