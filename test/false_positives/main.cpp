// Right programs on debug resources: nothing may be reported.
//
//   FALSE_POSITIVES=<resource>/<policy> false_positives
//
// The resource stands below global new, and another one of its kind is the default resource.

#include "programs.hpp"
#include "shim.hpp"

#include <pmr_debug/pmr_debug.hpp>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory_resource>
#include <new>
#include <string>
#include <string_view>

namespace false_positives {

namespace {

using namespace pmr_debug;

/// Prints what it gets and counts it; allocates nothing.
class counting_handler final : public report_handler {
public:
    action handle(const report& r) noexcept override {
        std::fprintf(stderr, "false_positives: reported: %s\n", std::string_view(to_string(r.kind)).data());
        ++count;
        return action::carry_on;
    }
    std::size_t count = 0;
};
counting_handler& handler() {
    alignas(counting_handler) static std::byte place[sizeof(counting_handler)];
    static auto* const made = ::new (static_cast<void*>(place)) counting_handler;
    return *made;
}

/// A resource with what it stands on. Nothing in it takes memory from global new.
class subject {
public:
    virtual ~subject() = default;
    virtual std::pmr::memory_resource& top() = 0;
    virtual std::size_t check() = 0;
    virtual statistics stats() const = 0;
    virtual void report_leaks() = 0;
};

template <class Top, class... Below>
struct chain {
    chain<Below...> below;
    Top top{&below.top, {.handler = &handler()}};
    std::size_t check() {
        std::size_t damaged = below.check();
        if constexpr (requires { top.check(); }) {
            damaged += top.check();
        }
        return damaged;
    }
};
struct on_pages {};
template <>
struct chain<on_pages> {
    page_resource top{{.handler = &handler()}};
    static std::size_t check() { return 0; }
};
struct on_nothing {};
template <class Top>
struct chain<Top, on_nothing> {
    Top top{{.handler = &handler()}};
    std::size_t check() { return top.check(); }
};

template <class... Resources>
class subject_of final : public subject {
public:
    std::pmr::memory_resource& top() override { return chain_.top; }
    std::size_t check() override { return chain_.check(); }
    statistics stats() const override { return chain_.top.stats(); }
    void report_leaks() override { chain_.top.report_leaks(); }

private:
    chain<Resources...> chain_;
};

/// A place for any of them, as nothing may be allocated yet.
struct place {
    alignas(std::max_align_t) std::byte bytes[4096];
};

template <class Subject>
subject* in(place& where) {
    static_assert(sizeof(Subject) <= sizeof(place::bytes));
    return ::new (static_cast<void*>(where.bytes)) Subject;
}

template <policy P>
subject* made(std::string_view resource, place& where) {
    using heap = basic_general_purpose_resource<P>;
    using quick_heap = basic_general_purpose_resource<release_policy>;
    using canary = basic_canary_resource<P>;
    using scope = basic_tracking_resource<P>;
    if (resource == "general_purpose") {
        return in<subject_of<heap, on_pages>>(where);
    }
    if (resource == "tracking") {
        return in<subject_of<scope, quick_heap, on_pages>>(where);
    }
    if (resource == "canary") {
        return in<subject_of<canary, quick_heap, on_pages>>(where);
    }
    if (resource == "end_of_page") {
        return in<subject_of<basic_end_of_page_resource<P>, on_nothing>>(where);
    }
    if (resource == "chain") {
        return in<subject_of<scope, canary, heap, on_pages>>(where);
    }
    return nullptr;
}

/// Returns: what the environment asks for.
subject* asked_for(place& where) {
    const char* const variable = std::getenv("FALSE_POSITIVES");
    const std::string_view wanted = variable != nullptr ? variable : "general_purpose/default";
    const std::string_view resource = wanted.substr(0, wanted.find('/'));
    const std::string_view policy = wanted.substr(std::min(wanted.size(), resource.size() + 1));
    subject* s = nullptr;
    if (policy == "default") {
        s = made<default_policy>(resource, where);
    } else if (policy == "thorough") {
        s = made<thorough_policy>(resource, where);
    } else if (policy == "fast") {
        s = made<fast_policy>(resource, where);
    } else if (policy == "release") {
        s = made<release_policy>(resource, where);
    }
    if (s == nullptr) {
        std::fputs("false_positives: FALSE_POSITIVES=<resource>/<policy>?\n", stderr);
        std::_Exit(2);
    }
    return s;
}

subject& below_new() {
    static place where;
    static subject* const s = asked_for(where);
    return *s;
}

}  // namespace

std::pmr::memory_resource& resource_below_new() {
    static std::pmr::memory_resource& r = below_new().top();
    return r;
}

int run() {
    set_default_report_handler(&handler());
    std::size_t damaged = 0;
    {
        static place where;
        subject* const as_default = asked_for(where);
        std::pmr::memory_resource* const before = std::pmr::set_default_resource(&as_default->top());
        for (void (*const program)() : {&containers, &json, &regular_expressions, &threads}) {
            program();
            damaged += as_default->check() + below_new().check();
        }
        std::pmr::set_default_resource(before);
        std::printf("default resource: %llu allocations\n",
                    static_cast<unsigned long long>(as_default->stats().total_allocations));
        expect(as_default->stats().total_allocations > 1000, "the default resource was not used");
        as_default->~subject();  // reports leaks
    }
    const statistics s = below_new().stats();
    std::printf("global new: %llu allocations, %llu live\nreports: %zu, damaged blocks: %zu\n",
                static_cast<unsigned long long>(s.total_allocations), static_cast<unsigned long long>(s.live_blocks),
                handler().count, damaged);
    expect(s.total_allocations > 10000, "global new was not used");
    return handler().count == 0 && damaged == 0 ? 0 : 1;
}

}  // namespace false_positives

int main() {
    return false_positives::run();
}
