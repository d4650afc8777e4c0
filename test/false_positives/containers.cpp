// The standard library's containers, and what else of it takes memory.

#include "programs.hpp"

#include <algorithm>
#include <any>
#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <forward_list>
#include <functional>
#include <iterator>
#include <list>
#include <locale>
#include <map>
#include <memory>
#include <memory_resource>
#include <numeric>
#include <optional>
#include <queue>
#include <random>
#include <set>
#include <sstream>
#include <stack>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <valarray>
#include <variant>
#include <vector>

namespace false_positives {

namespace {

std::pmr::string word(std::size_t i) {
    std::pmr::string s("word number ");
    s += std::to_string(i);
    if (i % 3 == 0) {
        s.append(i % 70, 'x');
    }
    return s;
}

void sequences() {
    std::pmr::vector<std::pmr::string> v;
    std::pmr::deque<std::pmr::string> d;
    std::pmr::list<std::pmr::string> l;
    std::pmr::forward_list<std::pmr::string> f;
    for (std::size_t i = 0; i < 400; ++i) {
        v.push_back(word(i));
        v.insert(v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), word(i + 1));
        d.push_front(word(i));
        d.push_back(word(i));
        l.push_back(word(i));
        f.push_front(word(i));
    }
    std::sort(v.begin(), v.end());
    std::stable_sort(d.begin(), d.end());
    std::inplace_merge(v.begin(), v.begin() + 200, v.end());
    l.sort();
    f.sort();
    l.unique();
    std::pmr::list<std::pmr::string> other;
    other.splice(other.begin(), l, std::next(l.begin(), 10), std::next(l.begin(), 200));
    l.merge(other);
    f.reverse();
    v.erase(std::unique(v.begin(), v.end()), v.end());
    v.shrink_to_fit();
    d.shrink_to_fit();
    std::pmr::vector<std::pmr::string> moved(std::move(v));
    std::pmr::vector<std::pmr::string> copied(moved);
    moved.swap(copied);
    copied = std::move(moved);
    expect(copied.size() == 401 && l.size() == 400, "sequences");

    std::pmr::vector<bool> bits(1000, true);
    bits.flip();
    std::valarray<double> numbers(1.5, 500);
    expect(numbers.sum() == 750.0 && std::count(bits.begin(), bits.end(), true) == 0, "bits and numbers");

    std::pmr::vector<std::pmr::vector<std::pmr::vector<int>>> nested(5);
    for (auto& a : nested) {
        a.resize(6);
        for (auto& b : a) {
            b.assign(7, 42);
        }
    }
    nested.erase(nested.begin() + 1);
    nested.insert(nested.begin(), nested.back());
    expect(nested.size() == 5 && nested[0][5][6] == 42, "nested");

    std::priority_queue<int, std::pmr::vector<int>> queue;
    std::stack<std::pmr::string, std::pmr::deque<std::pmr::string>> stack;
    for (int i = 0; i < 300; ++i) {
        queue.push(i * 7919 % 1009);
        stack.push(word(static_cast<std::size_t>(i)));
    }
    while (queue.size() > 1) {
        queue.pop();
        stack.pop();
    }
}

template <class Map>
void map_like() {
    Map m;
    for (std::size_t i = 0; i < 500; ++i) {
        m.emplace(word(i), word(i + 7));
    }
    for (std::size_t i = 0; i < 500; i += 2) {
        m.erase(word(i));
    }
    Map other;
    for (std::size_t i = 1; i < 500; i += 4) {
        if (auto node = m.extract(word(i))) {
            node.mapped() = "changed";
            other.insert(std::move(node));
        }
    }
    const std::size_t together = m.size() + other.size();
    m.merge(other);
    Map copy(m);
    copy.clear();
    copy = m;
    copy.swap(other);
    expect(together == 250 && m.size() == 250 && other.size() == 250, "maps");
}

template <class Set>
void set_like() {
    Set s;
    std::minstd_rand random(7);
    for (int i = 0; i < 800; ++i) {
        s.insert(word(random() % 300));
    }
    while (!s.empty()) {
        s.erase(s.begin());
    }
    s.insert(word(1));
}

void strings_and_streams() {
    std::pmr::string s;
    std::pmr::u16string u;
    for (std::size_t i = 0; i < 300; ++i) {
        s.insert(s.size() / 2, word(i));
        s.replace(s.size() / 3, 5, "replaced by something longer");
        u.append(i, u'\u00e4');
    }
    s.resize(100);
    s.shrink_to_fit();
    std::ostringstream out;
    for (int i = 0; i < 500; ++i) {
        out << i << ' ' << i * 0.25 << '\n';
    }
    std::istringstream in(out.str());
    double sum = 0;
    for (double x = 0; in >> x;) {
        sum += x;
    }
    expect(sum == 124750 * 1.25, "streams");
    std::ostringstream with_locale;
    with_locale.imbue(std::locale(std::locale::classic(), new std::numpunct<char>));
    with_locale << 1234567;
    expect(!with_locale.str().empty(), "locale");
}

void owners() {
    std::vector<std::shared_ptr<std::string>> shared;
    std::vector<std::weak_ptr<std::string>> weak;
    for (int i = 0; i < 100; ++i) {
        shared.push_back(i % 2 == 0 ? std::make_shared<std::string>(100, 'a')
                                    : std::shared_ptr<std::string>(new std::string(50, 'b')));
        weak.push_back(shared.back());
    }
    shared.resize(50);
    expect(weak[10].lock() != nullptr && weak[80].expired(), "weak pointers");

    struct alignas(128) wide {
        std::array<char, 256> bytes{};
    };
    std::vector<std::unique_ptr<wide>> aligned;
    std::vector<std::unique_ptr<wide[]>> arrays;
    for (std::size_t i = 1; i < 30; ++i) {
        aligned.push_back(std::make_unique<wide>());
        arrays.push_back(std::make_unique<wide[]>(i));
        expect(reinterpret_cast<std::uintptr_t>(arrays.back().get()) % 128 == 0, "alignment");
    }

    struct big_capture {
        std::array<int, 40> numbers{};
    };
    std::vector<std::function<int()>> functions;
    std::vector<std::any> anything;
    std::vector<std::variant<int, std::string, std::pmr::vector<int>>> variants;
    for (int i = 0; i < 60; ++i) {
        functions.emplace_back([i, big = big_capture()] { return i + big.numbers[3]; });
        anything.emplace_back(std::string(40, 'c'));
        variants.emplace_back(std::string(60, 'd'));
        variants.back() = std::pmr::vector<int>(50);
    }
    expect(functions[33]() == 33 && std::any_cast<std::string>(anything[5]).size() == 40, "functions");

    for (int i = 0; i < 50; ++i) {
        try {
            const std::vector<std::string> lost(10, std::string(100, 'e'));
            throw std::runtime_error(lost[3]);
        } catch (const std::exception& e) {
            std::exception_ptr kept = std::current_exception();
            expect(kept != nullptr && e.what()[0] == 'e', "exceptions");
        }
    }
    const std::unique_ptr<char[]> perhaps(new (std::nothrow) char[1000]);
    expect(perhaps != nullptr, "nothrow");
    delete[] new std::string[3];
}

void resources_on_top() {
    std::pmr::unsynchronized_pool_resource pool;
    std::pmr::synchronized_pool_resource shared_pool(&pool);
    std::pmr::monotonic_buffer_resource arena(100, &shared_pool);
    std::pmr::map<int, std::pmr::string> in_arena(&arena);
    std::pmr::unordered_map<int, std::pmr::vector<int>> in_pool(&shared_pool);
    for (int i = 0; i < 300; ++i) {
        in_arena[i] = word(static_cast<std::size_t>(i));
        in_pool[i].assign(static_cast<std::size_t>(i % 50), i);
        if (i % 3 == 0) {
            in_pool.erase(i / 2);
        }
    }
    void* const no_bytes = std::pmr::get_default_resource()->allocate(0, 1);
    std::pmr::get_default_resource()->deallocate(no_bytes, 0, 1);
    expect(in_arena.size() == 300, "resources on top");
}

}  // namespace

void containers() {
    sequences();
    map_like<std::pmr::map<std::pmr::string, std::pmr::string>>();
    map_like<std::pmr::unordered_map<std::pmr::string, std::pmr::string>>();
    set_like<std::pmr::set<std::pmr::string>>();
    set_like<std::pmr::multiset<std::pmr::string>>();
    set_like<std::pmr::unordered_set<std::pmr::string>>();
    set_like<std::pmr::unordered_multiset<std::pmr::string>>();
    strings_and_streams();
    owners();
    resources_on_top();
}

}  // namespace false_positives
