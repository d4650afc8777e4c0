// Reports as JSON: always valid, one line, every fact present.

#include "report/json.hpp"
#include "support/cut_trace.hpp"
#include "support/sample_reports.hpp"

#include <pmr_debug/report.hpp>
#include <pmr_debug/stack_trace.hpp>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace pmr_debug;
using nlohmann::json;
using test_support::json_of;
using test_support::sample;
using enum pmr_debug::error_kind;

__attribute__((noinline)) trace_id named_function() {
    const trace_id id = capture_trace(16);
    asm volatile("");
    return id;
}

json parsed(const report& r) {
    return json::parse(json_of(r));  // throws, and so fails the test, if invalid
}

std::string escaped(std::string_view s) {
    std::string text;
    {
        detail::writer out(test_support::append, &text);
        detail::write_json_string(out, s);
    }
    return text;
}

TEST(report_json, of_every_kind_is_one_valid_line_with_the_kind_in_it) {
    for (std::size_t i = 0; i < error_kind_count; ++i) {
        const auto kind = static_cast<error_kind>(i);
        const std::string line = json_of(sample(kind));
        EXPECT_EQ(std::count(line.begin(), line.end(), '\n'), 1);
        EXPECT_EQ(line.back(), '\n');
        const json j = json::parse(line);
        EXPECT_EQ(j.at("tool"), "pmr_debug");
        EXPECT_EQ(j.at("kind"), to_string(kind));
        EXPECT_TRUE(j.at("headline").get<std::string>().starts_with(std::string(to_string(kind)) + ": "));
        EXPECT_EQ(j.at("thread"), 2);
        EXPECT_FALSE(j.at("hint").get<std::string>().empty());
        EXPECT_EQ(j.at("resource").at("name"), "index");
    }
}

TEST(report_json, holds_the_facts) {
    const json j = parsed(sample(interior_free));
    EXPECT_EQ(j.at("resource").at("id"), 3);
    EXPECT_EQ(j.at("resource").at("type"), "general_purpose_resource");
    EXPECT_EQ(j.at("resource").at("address"), "0x7ffc00000010");
    EXPECT_EQ(j.at("resource").at("alive"), true);
    EXPECT_EQ(j.at("pointer"), "0x7f0000001010");
    EXPECT_EQ(j.at("offset"), 16);
    EXPECT_EQ(j.at("block").at("address"), "0x7f0000001000");
    EXPECT_EQ(j.at("block").at("size"), 64);
    EXPECT_EQ(j.at("block").at("alignment"), 16);
    EXPECT_EQ(j.at("block").at("serial"), 12);
    EXPECT_EQ(j.at("block").at("state"), "live");
    EXPECT_EQ(j.at("block").at("alloc_thread"), 1);
    EXPECT_EQ(j.at("block").at("free_thread"), 0);
    EXPECT_EQ(j.at("block").at("nearest_only"), false);
    EXPECT_EQ(j.at("given").at("size"), 64);
    EXPECT_EQ(j.at("given").at("alignment"), 16);
    EXPECT_FALSE(j.contains("owner"));
    EXPECT_FALSE(j.contains("damage"));
    EXPECT_FALSE(j.contains("limit"));
    EXPECT_FALSE(j.contains("leaks"));
}

TEST(report_json, holds_what_only_some_kinds_have) {
    const json before = parsed(sample(underrun)).at("damage");
    EXPECT_EQ(before.at("offset"), -8);
    EXPECT_EQ(before.at("address"), "0x7f0000000ff8");
    EXPECT_EQ(before.at("bytes"), 1);
    EXPECT_EQ(before.at("found"), 0x41);
    EXPECT_EQ(before.at("expected"), 0xaa);
    EXPECT_EQ(parsed(sample(wrong_resource)).at("owner").at("id"), 7);
    EXPECT_EQ(parsed(sample(foreign_thread)).at("other_thread"), 1);
    EXPECT_EQ(parsed(sample(limit_exceeded)).at("limit"), 1010);
    EXPECT_EQ(parsed(sample(limit_exceeded)).at("in_use"), 1004);
    const json leaks = parsed(sample(leak));
    EXPECT_EQ(leaks.at("leaked_blocks"), 101);
    EXPECT_EQ(leaks.at("leaked_bytes"), 20'064);
    EXPECT_EQ(leaks.at("call_paths"), 2);
    EXPECT_EQ(leaks.at("leaks").at(0).at("blocks"), 100);
    EXPECT_EQ(leaks.at("leaks").at(0).at("bytes"), 20'000);
    EXPECT_EQ(leaks.at("leaks").at(0).at("example"), "0x7f0000001000");
    EXPECT_EQ(leaks.at("leaks").at(0).at("example_size"), 200);
    EXPECT_TRUE(leaks.at("leaks").at(0).at("allocated").empty());
}

TEST(report_json, has_traces_as_arrays_of_frames) {
    report r = sample(wrong_resource);
    r.here = named_function();
    r.allocated = named_function();
    r.owner.alive = false;
    r.owner.born = named_function();
    const json j = parsed(r);
    const json& here = j.at("traces").at("here");
    ASSERT_FALSE(here.empty());
    EXPECT_TRUE(here.at(0).at("function").get<std::string>().find("named_function") != std::string::npos) << here;
    EXPECT_TRUE(here.at(0).at("file").get<std::string>().ends_with("report_json_test.cpp")) << here;
    EXPECT_GT(here.at(0).at("line").get<int>(), 0);
    EXPECT_FALSE(here.at(0).at("module").get<std::string>().empty());
    EXPECT_TRUE(here.at(0).at("address").get<std::string>().starts_with("0x"));
    EXPECT_TRUE(here.at(0).at("offset").get<std::string>().starts_with("0x"));
    EXPECT_TRUE(here.at(0).at("inlined").is_boolean());
    EXPECT_TRUE(j.at("traces").contains("allocated"));
    EXPECT_FALSE(j.at("traces").contains("freed"));
    EXPECT_FALSE(j.at("owner").at("constructed").empty());
    EXPECT_FALSE(j.at("owner").contains("destroyed"));
    EXPECT_EQ(j.at("cut_short"), json::array());
    r.allocated = test_support::cut_trace();
    EXPECT_EQ(parsed(r).at("cut_short"), json::array({"allocated"}));
    EXPECT_EQ(parsed(r).at("unverified"), json::array());
    r.allocated = test_support::cut_trace(stack::is_unverified);
    EXPECT_EQ(parsed(r).at("unverified"), json::array({"allocated"}));
}

TEST(report_json, survives_hostile_strings) {
    report r = sample(wrong_resource);
    r.resource.name = "quote\" back\\ nl\n nul\x01 bad\xff\xc3 euro€";
    r.hint = "\xed\xa0\x80 surrogate";
    const json j = parsed(r);
    EXPECT_EQ(j.at("resource").at("name"), "quote\" back\\ nl\n nul\x01 bad\xef\xbf\xbd\xef\xbf\xbd euro€");
    EXPECT_EQ(j.at("hint"), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd surrogate");
    // A headline that is cut at its longest, within a character for two of the three shifts.
    int cut = 0;
    for (const std::string shift : {"", "y", "yy"}) {
        std::string name = shift + std::string(1900, 'x');
        for (int i = 0; i < 100; ++i) {
            name += "€";
        }
        r.resource.name = name;
        cut += parsed(r).at("headline").get<std::string>().ends_with("\xef\xbf\xbd") ? 1 : 0;
    }
    EXPECT_EQ(cut, 2);
}

TEST(report_json, strings_of_every_two_bytes_are_valid) {
    for (int first = 0; first < 256; ++first) {
        for (int second = 0; second < 256; ++second) {
            const char s[] = {static_cast<char>(first), static_cast<char>(second), 'z'};
            ASSERT_TRUE(json::accept(escaped({s, 3}))) << first << ' ' << second;
        }
    }
}

TEST(report_json, keeps_valid_utf8_and_nothing_else) {
    EXPECT_EQ(escaped("aé€😀"), "\"aé€😀\"");
    EXPECT_EQ(escaped("\xc0\xaf"), "\"\\ufffd\\ufffd\"");                        // overlong
    EXPECT_EQ(escaped("\xe0\x80\xaf"), "\"\\ufffd\\ufffd\\ufffd\"");             // overlong
    EXPECT_EQ(escaped("\xf0\x80\x80\xaf"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");  // overlong
    EXPECT_EQ(escaped("\xf4\x90\x80\x80"), "\"\\ufffd\\ufffd\\ufffd\\ufffd\"");  // above U+10FFFF
    EXPECT_EQ(escaped("\xe2\x82"), "\"\\ufffd\\ufffd\"");                        // cut
    EXPECT_EQ(escaped("\x7f\x1f"), "\"\\u007f\\u001f\"");
}

TEST(report_json, caps_call_paths_but_counts_all) {
    const std::vector<leak_group> groups(1500, {.blocks = 1, .bytes = 8, .example_size = 8});
    report r = sample(leak);
    r.leaks = groups;
    r.leaked_blocks = 1500;
    r.leaked_bytes = 12'000;
    const json j = parsed(r);
    EXPECT_EQ(j.at("call_paths"), 1500);
    EXPECT_EQ(j.at("leaks").size(), 1000U);
    EXPECT_EQ(j.at("leaked_bytes"), 12'000);
}

}  // namespace
