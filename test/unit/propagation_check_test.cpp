#include <pmr_debug/testing/propagation_check.hpp>
#include <pmr_debug/tracking_resource.hpp>

#include <gtest/gtest.h>

#include <array>
#include <map>
#include <memory>
#include <memory_resource>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

namespace {

using pmr_debug::testing::check_propagation;
using pmr_debug::testing::misplacement;
using pmr_debug::testing::propagation_findings;

struct propagation : ::testing::Test {
    pmr_debug::tracking_resource arena{{.name = "arena"}};
    pmr_debug::tracking_resource other{{.name = "other"}};
};

// Line 14: an aggregate is not uses-allocator, so its pmr member is on the default resource.
struct entry {
    std::string plain;
    std::pmr::string modern;
};
struct numbers {
    int a;
    double b;
};
struct with_array {
    int a[3];
    std::pmr::string s;
};
struct derived : numbers {
    std::pmr::string s;
};
struct nested {
    int number;
    std::pair<int, std::pmr::string> both;
};

TEST_F(propagation, containers_in_containers_that_are_in_place) {
    std::pmr::map<std::pmr::string, std::pmr::vector<std::pmr::string>> m(&arena);
    m["one"].emplace_back("x");
    m["two"].emplace_back("y");
    const propagation_findings f = check_propagation(m);
    EXPECT_TRUE(f.ok());
    EXPECT_EQ(f.checked(), 1U + 2U * 3U);
    EXPECT_EQ(f.opaque(), 0U);
    EXPECT_EQ(f.path(), "");
    EXPECT_EQ(f.what(), misplacement::none);
}

TEST_F(propagation, an_aggregate_element_is_looked_into_14) {
    std::pmr::vector<entry> v(&arena);
    v.emplace_back();
    v.emplace_back();
    const propagation_findings f = check_propagation(v);
    EXPECT_EQ(f.misplaced(), 4U);
    EXPECT_EQ(f.path(), "[0].0");
    EXPECT_EQ(f.what(), misplacement::not_a_pmr_object);
    EXPECT_EQ(f.found(), nullptr);

    // The twin.
    std::pmr::vector<std::pmr::string> good(&arena);
    good.emplace_back();
    EXPECT_TRUE(check_propagation(good).ok());
}

// Line 15: a copy constructor that falls back to the default resource.
TEST_F(propagation, a_copy_on_the_default_resource_is_found_15) {
    const std::pmr::vector<int> original({1, 2, 3}, &arena);
    const auto copy = original;
    const propagation_findings f = check_propagation(copy, &arena);
    EXPECT_EQ(f.misplaced(), 1U);
    EXPECT_EQ(f.path(), "");
    EXPECT_EQ(f.what(), misplacement::other_resource);
    EXPECT_EQ(f.found(), std::pmr::get_default_resource());
    EXPECT_TRUE(check_propagation(std::pmr::vector<int>(original, &arena), &arena).ok());
}

TEST_F(propagation, paths_lead_through_pairs_tuples_optionals_and_variants) {
    const std::pmr::string away("away", &other);
    const std::pmr::string here("here", &arena);
    std::vector<std::pair<int, std::pmr::string>> pairs;
    pairs.reserve(2);
    pairs.emplace_back(1, std::pmr::string("x", &arena));
    pairs.emplace_back(2, std::pmr::string("x", &other));
    const propagation_findings in_pairs = check_propagation(pairs, &arena);
    EXPECT_EQ(in_pairs.misplaced(), 2U) << "the std::vector, too";
    EXPECT_EQ(in_pairs.path(), "");
    std::array<std::pair<int, std::pmr::string>, 2> array{std::pair{1, std::pmr::string("x", &arena)},
                                                          std::pair{2, std::pmr::string("x", &other)}};
    const propagation_findings in_array = check_propagation(array, &arena);
    EXPECT_EQ(in_array.path(), "[1].second");
    EXPECT_EQ(in_array.found(), &other);

    const std::tuple<int, std::pmr::string, std::pmr::string> tuple(1, std::pmr::string("x", &arena),
                                                                    std::pmr::string("x", &other));
    EXPECT_EQ(check_propagation(tuple, &arena).path(), ".2");

    std::optional<std::pmr::string> maybe;
    EXPECT_EQ(check_propagation(maybe, &arena).checked(), 0U);
    maybe.emplace("x", &other);
    EXPECT_EQ(check_propagation(maybe, &arena).path(), "*");

    std::variant<int, std::pmr::string> either(1);
    EXPECT_TRUE(check_propagation(either, &arena).ok());
    either.emplace<1>("x", &other);
    EXPECT_EQ(check_propagation(either, &arena).path(), "|1|");
}

TEST_F(propagation, aggregates_are_looked_into_where_that_is_safe) {
    const nested n{1, {2, std::pmr::string("x", &other)}};
    EXPECT_EQ(check_propagation(n, &arena).path(), ".1.second");
    const numbers plain{1, 2.0};
    EXPECT_TRUE(check_propagation(plain, &arena).ok());
    EXPECT_EQ(check_propagation(plain, &arena).opaque(), 0U);
    const derived d{{1, 2.0}, std::pmr::string("x", &other)};
    EXPECT_EQ(check_propagation(d, &arena).opaque(), 1U);
}

struct with_array_of_strings {
    std::pair<int, std::pmr::string> before;
    std::pmr::string both[2];
    std::array<std::pmr::string, 2> more;
};
// Its last member takes no empty braces, so the number of members is in doubt.
struct without_default {
    explicit without_default(int n) : name(static_cast<std::size_t>(n), 'x') {}
    std::pmr::string name;
};
struct with_initializer {
    std::pmr::string s;
    without_default t = without_default(1);
};

TEST_F(propagation, arrays_are_looked_into_wherever_they_stand) {
    const with_array numbers_first{{1, 2, 3}, std::pmr::string("x", &other)};
    EXPECT_EQ(check_propagation(numbers_first, &arena).path(), ".1");
    EXPECT_EQ(check_propagation(numbers_first, &other).opaque(), 0U);
    EXPECT_TRUE(check_propagation(numbers_first, &other).ok());

    const std::pmr::string bare[2]{std::pmr::string("x", &arena), std::pmr::string("x", &other)};
    EXPECT_EQ(check_propagation(bare, &arena).path(), "[1]");
    EXPECT_EQ(check_propagation(bare, &arena).misplaced(), 1U);

    const auto make = [&](std::pmr::memory_resource* second, std::pmr::memory_resource* last) {
        return with_array_of_strings{{1, std::pmr::string("x", &arena)},
                                     {std::pmr::string("x", &arena), std::pmr::string("x", second)},
                                     {std::pmr::string("x", &arena), std::pmr::string("x", last)}};
    };
    EXPECT_EQ(check_propagation(make(&other, &arena), &arena).path(), ".1[1]");
    EXPECT_EQ(check_propagation(make(&arena, &other), &arena).path(), ".2[1]");
    const propagation_findings good = check_propagation(make(&arena, &arena), &arena);
    EXPECT_TRUE(good.ok());
    EXPECT_EQ(good.checked(), 5U);
    EXPECT_EQ(good.opaque(), 0U);

    EXPECT_EQ(check_propagation(with_initializer{}, &arena).opaque(), 1U);
}

struct only_declared;
struct node {
    std::pmr::string name;
    std::shared_ptr<node> next;
};
struct link {
    std::unique_ptr<link> next;
    std::pmr::string name;
};

TEST_F(propagation, what_smart_pointers_own_is_looked_at) {
    const auto one = std::make_unique<std::pmr::string>("x", &other);
    EXPECT_EQ(check_propagation(one, &arena).path(), "*");
    EXPECT_EQ(check_propagation(one, &arena).found(), &other);
    EXPECT_TRUE(check_propagation(one, &other).ok());
    EXPECT_EQ(check_propagation(one, &other).checked(), 1U);

    std::pmr::vector<std::shared_ptr<const std::pair<int, std::pmr::string>>> v(&arena);
    v.push_back(nullptr);
    v.push_back(std::make_shared<const std::pair<int, std::pmr::string>>(1, std::pmr::string("x", &other)));
    const propagation_findings shared = check_propagation(v);
    EXPECT_EQ(shared.path(), "[1]*.second");
    EXPECT_EQ(shared.misplaced(), 1U);
    EXPECT_EQ(shared.opaque(), 0U);
    v.back() = std::make_shared<const std::pair<int, std::pmr::string>>(1, std::pmr::string("x", &arena));
    EXPECT_TRUE(check_propagation(v).ok());

    const std::unique_ptr<int> number = std::make_unique<int>(1);
    EXPECT_EQ(check_propagation(number, &arena).opaque(), 0U);
    const std::unique_ptr<link> none;
    EXPECT_EQ(check_propagation(none, &arena).checked(), 0U);
}

TEST_F(propagation, smart_pointers_that_hide_their_object_are_opaque) {
    const std::shared_ptr<only_declared> declared;
    EXPECT_EQ(check_propagation(declared, &arena).opaque(), 1U);
    const std::shared_ptr<void> anything = std::make_shared<int>(1);
    EXPECT_EQ(check_propagation(anything, &arena).opaque(), 1U);
    const auto many = std::make_unique<std::pmr::string[]>(2);
    EXPECT_EQ(check_propagation(many, &arena).opaque(), 1U);
}

TEST_F(propagation, circles_and_long_lists_come_to_an_end) {
    const auto first = std::make_shared<node>(node{std::pmr::string("x", &arena), nullptr});
    first->next = std::make_shared<node>(node{std::pmr::string("x", &other), first});
    const propagation_findings circle = check_propagation(first, &arena);
    EXPECT_EQ(circle.checked(), 2U);
    EXPECT_EQ(circle.path(), "*.1*.0");
    first->next->next = nullptr;

    std::unique_ptr<link> list;
    for (int i = 0; i < 1000; ++i) {
        list = std::make_unique<link>(link{std::move(list), std::pmr::string("x", &arena)});
    }
    const propagation_findings cut = check_propagation(list, &arena);
    EXPECT_EQ(cut.checked(), 256U);
    EXPECT_EQ(cut.opaque(), 1U);
    while (list != nullptr) {  // one by one: a destructor would recurse
        list = std::move(list->next);
    }
}

class closed {
public:
    explicit closed(std::pmr::memory_resource* r) : s_("x", r) {}

private:
    std::pmr::string s_;
};
class open {
public:
    explicit open(std::pmr::memory_resource* r) : s_("x", r) {}
    friend auto propagation_members(const open& o) { return std::tie(o.number_, o.s_); }

private:
    int number_ = 0;
    std::pmr::string s_;
};

TEST_F(propagation, classes_are_opaque_unless_they_show_their_members) {
    EXPECT_EQ(check_propagation(closed(&other), &arena).opaque(), 1U);
    const propagation_findings f = check_propagation(open(&other), &arena);
    EXPECT_EQ(f.opaque(), 0U);
    EXPECT_EQ(f.path(), ".1");
}

TEST_F(propagation, looks_without_allocating_and_cuts_long_paths) {
    using deep = std::pmr::vector<std::pmr::vector<std::pmr::vector<std::pmr::string>>>;
    deep d(&arena);
    d.emplace_back().emplace_back().emplace_back("x");
    const auto before = arena.stats().total_allocations;
    EXPECT_EQ(check_propagation(d, &other).misplaced(), 4U);
    EXPECT_EQ(arena.stats().total_allocations, before);

    propagation_findings f;
    for (int i = 0; i < 100; ++i) {
        f.enter("[", 18'446'744'073'709'551'615U, "]");
    }
    f.note(misplacement::not_a_pmr_object, nullptr);
    EXPECT_EQ(f.path().size(), 160U);
    EXPECT_EQ(f.path().substr(0, 23), "[18446744073709551615][");
    f.leave(0);
    EXPECT_EQ(f.depth(), 0U);
}

}  // namespace
