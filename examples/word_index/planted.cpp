#include "planted.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <functional>
#include <memory>
#include <string_view>
#include <thread>

// Inlining would not hide these functions from a report, but a tail call would: the frame is gone when it is made.
// They are static, as the name of an unnamed namespace makes a report no easier to read.
#define DEMO_PLANTED __attribute__((noinline)) static

namespace demo {

constexpr std::size_t cache_line = 64;

// A value the optimiser knows nothing about: it must not find out what is wrong here and act on it.
template <class T>
__attribute__((noinline)) static T opaque(T value) {
    asm volatile("" : "+r"(value) : : "memory");
    return value;
}

static void end_of_function() {
    asm volatile("" : : : "memory");
}

static posting* new_posting(std::pmr::memory_resource& memory) {
    return ::new (memory.allocate(sizeof(posting), alignof(posting))) posting{1, 1};
}

DEMO_PLANTED void drop_posting(std::pmr::memory_resource& memory, posting* p) {
    memory.deallocate(p, sizeof(posting), alignof(posting));
    end_of_function();
}

// leak: the copy belongs to the caller, but nobody told the caller.
DEMO_PLANTED const posting* copy_postings_for_display(const bug_site& site, std::string_view word) {
    const word_index::posting_list& list = site.index.words().find(word)->second;
    auto* const copy = static_cast<posting*>(site.memory.allocate(list.size() * sizeof(posting), alignof(posting)));
    std::uninitialized_copy(list.begin(), list.end(), copy);
    return copy;
}

DEMO_PLANTED void show_top_words(const bug_site& site) {
    for (const word_index::entry* e : site.index.most_frequent(3)) {
        opaque(copy_postings_for_display(site, e->first));
    }
}

// double-free: one drop as the word is removed, one more for its posting.
DEMO_PLANTED void drop_posting_twice(const bug_site& site) {
    posting* const p = opaque(new_posting(site.memory));
    drop_posting(site.memory, p);
    drop_posting(site.memory, p);
    end_of_function();
}

// wrong-size: gives back as many bytes as are in use, not as many as were asked for.
DEMO_PLANTED void give_back_only_what_was_used(const bug_site& site) {
    constexpr std::size_t capacity = 100;
    const std::size_t used = opaque(std::size_t{60});
    void* const list = site.memory.allocate(capacity * sizeof(posting), alignof(posting));
    site.memory.deallocate(list, used * sizeof(posting), alignof(posting));
    end_of_function();
}

// wrong-alignment: asked for a cache line, gives back a plain posting.
DEMO_PLANTED void forget_the_cache_line(const bug_site& site) {
    void* const hot = site.memory.allocate(sizeof(posting), cache_line);
    site.memory.deallocate(hot, sizeof(posting), alignof(posting));
    end_of_function();
}

// overrun: room for the letters, but not for the terminator.
DEMO_PLANTED char* copy_word_as_c_string(std::pmr::memory_resource& memory, std::string_view word) {
    auto* const copy = static_cast<char*>(memory.allocate(word.size(), 1));
    std::memcpy(copy, word.data(), word.size());
    copy[word.size()] = '\0';
    return copy;
}

DEMO_PLANTED void free_word(std::pmr::memory_resource& memory, char* word, std::size_t length) {
    memory.deallocate(word, length, 1);
    end_of_function();
}

DEMO_PLANTED void copy_one_word(const bug_site& site) {
    const std::string_view word = opaque("terminator");
    free_word(site.memory, copy_word_as_c_string(site.memory, word), word.size());
    end_of_function();
}

// use-after-free: a reference into a vector does not survive that the vector grows.
DEMO_PLANTED void correct_line_through_stale_reference(const bug_site& site) {
    word_index::posting_list list(&site.memory);
    list.push_back({1, 1});
    posting& first = *opaque(&list.front());
    list.push_back({1, 2});  // moves the postings elsewhere and frees where `first` is
    first.line = 7;
    end_of_function();
}

// foreign-thread: the resource was promised to one thread.
DEMO_PLANTED void index_in_second_thread(const bug_site& site) {
    drop_posting(site.memory, opaque(new_posting(site.memory)));
    end_of_function();
}

DEMO_PLANTED void start_second_thread(const bug_site& site) {
    std::thread(index_in_second_thread, std::cref(site)).join();
}

// wrong-resource: what came from one resource goes back to another.
DEMO_PLANTED void return_posting_to_other_resource(const bug_site& site) {
    posting* const p = opaque(new_posting(site.memory));
    drop_posting(site.other, p);
    drop_posting(site.memory, p);
    end_of_function();
}

namespace {

struct planting {
    planted_bug bug;
    const char* name;
    void (*run)(const bug_site&);
};

constexpr std::array plantings{
    planting{planted_bug::leak, "copy_postings_for_display", show_top_words},
    planting{planted_bug::double_free, "drop_posting_twice", drop_posting_twice},
    planting{planted_bug::wrong_size, "give_back_only_what_was_used", give_back_only_what_was_used},
    planting{planted_bug::wrong_alignment, "forget_the_cache_line", forget_the_cache_line},
    planting{planted_bug::overrun, "copy_word_as_c_string", copy_one_word},
    planting{planted_bug::use_after_free, "correct_line_through_stale_reference", correct_line_through_stale_reference},
    planting{planted_bug::foreign_thread, "index_in_second_thread", start_second_thread},
    planting{planted_bug::wrong_resource, "return_posting_to_other_resource", return_posting_to_other_resource},
};

const planting* find(planted_bug bug) {
    const auto* const found =
        std::find_if(plantings.begin(), plantings.end(), [bug](const planting& p) { return p.bug == bug; });
    return found != plantings.end() ? found : nullptr;
}

}  // namespace

void plant(planted_bug bug, bug_site site) {
    if (const planting* const p = find(bug); p != nullptr) {
        p->run(site);
    }
}

const char* function_of(planted_bug bug) {
    const planting* const p = find(bug);
    return p != nullptr ? p->name : "";
}

}  // namespace demo
